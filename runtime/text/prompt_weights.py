"""Prompts with weights and of any length, to embeddings.

Two ways from text to embeddings. The plain one is that of diffusers: brackets are text, and a row
holds 77 tokens, of which a longer prompt fills one and loses its end. The weighted one reads
`(word:1.3)` and gives a long prompt as many rows as it needs. A prompt without brackets,
backslashes and BREAK, of up to 75 tokens, comes out the same bit for bit on both.

Here is what the weighted way adds; sdexport.runtime.text_encoders takes a prompt down either.

Source: the weighted way follows the meaning of prompts in the AUTOMATIC1111 Stable Diffusion web UI
(its "original" emphasis).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sdexport.runtime.text.tokenizer import ClipTokenizer

BRACKET = 1.1
MAX_WEIGHT = 1000.0
_MAX_SCALE = 1000.0
_TOKENS = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)|(?P<bracket>[(\[\])])"
    r"|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<text>[^\\()\[\]:]+|:)"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Segment:
    """A stretch of text of one weight; 1.0 is neutral."""

    text: str
    weight: float


@dataclass(frozen=True)
class WeightedTokens:
    """Rows of ids and their weights, an equal number of rows for each prompt.

    input_ids: (B, rows, max_length) int64. weights: the same shape, float32; 1 at start, end and
    padding.
    """

    input_ids: np.ndarray
    weights: np.ndarray

    @property
    def flat_ids(self) -> np.ndarray:
        """(B * rows, max_length) int64, for the text encoder; rows of one prompt are neighbours.

        A pooled output for each of them is that of the prompt at every `rows`-th place.
        """
        return self.input_ids.reshape(-1, self.input_ids.shape[-1])


def parse_weights(text: str) -> list[list[Segment]]:
    r"""Read the weights written into a prompt, as the AUTOMATIC1111 web UI reads them.

    `(word:1.3)` multiplies by 1.3, `(word)` by 1.1, `[word]` divides by 1.1; inside each other they
    multiply. `\(` `\)` `\[` `\]` `\\` are the characters themselves; another backslash is left out.
    A bracket that is never closed holds to the end; one that was never opened is text, and so is
    a number without its bracket. The word BREAK in capitals begins a new row of tokens; unlike
    there it does so inside brackets too. Neighbours of equal weight are one segment. Weights are
    held within +-1000, however many brackets there are. No text is refused.

    Returns: for each part between BREAKs its segments, none of them empty; at least one part, and
      `[[Segment("", 1.0)]]` of an empty text.
    """
    found = _read(text)
    weights = np.ones(len(found))
    open_brackets: dict[str, list[int]] = {"(": [], "[": []}
    parts: list[str | None] = []

    def close(kind: str, factor: float) -> None:
        inside = weights[open_brackets[kind].pop() : len(parts)]
        inside *= min(max(factor, -MAX_WEIGHT), MAX_WEIGHT)
        np.clip(inside, -MAX_WEIGHT, MAX_WEIGHT, out=inside)

    for kind, value in found:
        if kind == "bracket" and value in open_brackets:
            open_brackets[value].append(len(parts))
        elif kind == "weight" and open_brackets["("] and _is_number(value[1:-1]):
            close("(", float(value[1:-1]))
        elif value == ")" and kind == "bracket" and open_brackets["("]:
            close("(", BRACKET)
        elif value == "]" and kind == "bracket" and open_brackets["["]:
            close("[", 1 / BRACKET)
        else:
            parts.append(None if kind == "break" else value)
    while open_brackets["("]:
        close("(", BRACKET)
    while open_brackets["["]:
        close("[", 1 / BRACKET)
    return _segments(parts, weights[: len(parts)].tolist())


def _read(text: str) -> list[tuple[str, str]]:
    """Kind and text of each piece: escaped, bracket, weight, text or break."""
    found: list[tuple[str, str]] = []
    for match in _TOKENS.finditer(text):
        kind = match.lastgroup or "text"
        if kind == "text":
            for number, part in enumerate(_BREAK.split(match[0])):
                found += [("break", ""), ("text", part)] if number else [("text", part)]
        else:
            found.append((kind, match[kind] if kind == "escaped" else match[0]))
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _segments(parts: list[str | None], weights: list[float]) -> list[list[Segment]]:
    rows: list[list[Segment]] = [[]]
    for weight, run in itertools.groupby(
        zip(parts, weights, strict=True), key=lambda pair: None if pair[0] is None else pair[1]
    ):
        texts = [part for part, _ in run]
        if weight is None:
            rows += [[] for _ in texts]
        elif joined := "".join(part or "" for part in texts):
            rows[-1].append(Segment(joined, weight))
    return rows if any(rows) or len(rows) > 1 else [[Segment("", 1.0)]]


def tokenize_weighted(
    tokenizer: ClipTokenizer, prompts: Sequence[str], *, comma_backtrack: int = 0
) -> WeightedTokens:
    """Ids and weights of prompts of any length, in rows that the text encoder takes.

    Each row has its own start and end token. Prompts are filled up with empty rows to the number
    of the longest one: put negative prompts and prompts into one call. Each segment is tokenized
    for itself.

    Args:
      comma_backtrack: where a row is full, look back that many tokens for a comma, and begin the
        next row after it; the web UI's own setting is 20. 0 cuts wherever the row is full.
    Raises: TypeError: one string, or something else than strings. ValueError: no prompt; not valid
      Unicode; a negative comma_backtrack.
    """
    if isinstance(prompts, str):
        raise TypeError("prompt: expected a list of prompts, got one string")
    if not prompts or comma_backtrack < 0:
        raise ValueError(
            f"prompt: expected a prompt and a comma_backtrack of 0 or more, got {len(prompts)} "
            f"prompts and {comma_backtrack}"
        )
    split = [list(_rows(tokenizer, prompt, comma_backtrack)) for prompt in prompts]
    shape = (len(prompts), max(map(len, split)), tokenizer.max_length)
    input_ids = np.full(shape, tokenizer.pad_id, dtype=np.int64)
    weights = np.ones(shape, dtype=np.float32)
    input_ids[:, :, :2] = tokenizer.bos_id, tokenizer.eos_id
    for b, rows in enumerate(split):
        for r, (ids, factors) in enumerate(rows):
            input_ids[b, r, 1 : len(ids) + 2] = [*ids, tokenizer.eos_id]
            weights[b, r, 1 : len(ids) + 1] = factors
    return WeightedTokens(input_ids, weights)


def _rows(
    tokenizer: ClipTokenizer, prompt: str, comma_backtrack: int
) -> Iterator[tuple[list[int], list[float]]]:
    """Ids and weights of each row, without start and end token."""
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a string, got {type(prompt).__name__}")
    room = tokenizer.max_length - 2
    (comma,) = tokenizer.encode(",")[:1] or [-1]
    parts = parse_weights(prompt)
    for number, part in enumerate(parts):
        ids: list[int] = []
        weights: list[float] = []
        for segment in part:
            new = tokenizer.encode(segment.text)
            ids += new
            weights += [segment.weight] * len(new)
        while len(ids) > room:
            cut = room
            if comma_backtrack and ids[room] != comma:
                recent = range(max(0, room - comma_backtrack), room)
                cut = next((i + 1 for i in reversed(recent) if ids[i] == comma), room)
            yield ids[:cut], weights[:cut]
            ids, weights = ids[cut:], weights[cut:]
        if ids or number == 0 or number < len(parts) - 1:
            yield ids, weights


def apply_weights(
    hidden_states: np.ndarray, tokens: WeightedTokens, *, restore_mean: bool = True
) -> np.ndarray:
    """Weigh what the text encoder gave, and join the rows of each prompt.

    Each token's hidden state is multiplied by its weight. Then the whole row is scaled so that its
    mean is what it was, which is what the web UI's "original" emphasis does for one prompt;
    restore_mean=False is its "no norm". Rows without weights stay as they are, to the last bit. A
    row whose new mean is next to nothing is not scaled; there the web UI divides by it.

    Args:
      hidden_states: (B * rows, max_length, width) float32, for `tokens.flat_ids`.
    Returns: (B, rows * max_length, width) float32, a new array.
    Raises: ValueError: shape or dtype differ.
    """
    count, rows, length = tokens.input_ids.shape
    if (
        hidden_states.ndim != 3
        or hidden_states.shape[:2] != (count * rows, length)
        or hidden_states.dtype != np.float32
    ):
        raise ValueError(
            f"prompt: expected hidden states float32 ({count * rows}, {length}, width), "
            f"got {hidden_states.dtype} {hidden_states.shape}"
        )
    embeds = hidden_states.copy()
    for row, weights in zip(embeds, tokens.weights.reshape(-1, length), strict=True):
        if (weights == 1).all():
            continue
        before = row.mean(dtype=np.float64)
        row *= weights[:, None]
        after = row.mean(dtype=np.float64)
        if restore_mean and abs(after) > abs(before) / _MAX_SCALE:
            row *= np.float32(before / after)
    return embeds.reshape(count, rows * length, -1)
