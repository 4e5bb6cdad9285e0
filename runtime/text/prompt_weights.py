"""Prompt weighting and prompts of any length: `(word:1.3)`, `[word]`, BREAK.

By default prompts are encoded as in diffusers: brackets are text, and a prompt is truncated to a
row of 77 tokens. With prompt weights, brackets set weights and a long prompt has as many rows as it
needs. A prompt of up to 75 tokens without brackets, backslashes and BREAK has the same embeddings,
bit for bit, either way. sdexport.runtime.text_encoders does both.

This is the part of the prompt style "automatic1111" that concerns one text; prompt_editing.py and
prompt_parts.py take a prompt apart into such texts before.

Source: the prompt syntax of AUTOMATIC1111's web UI, with its "original" emphasis.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.text.tokenizer import ClipTokenizer

BRACKET_FACTOR = 1.1
COMMA_BACKTRACK = 20
"""The web UI's default: a full row ends after a comma among its last so many tokens."""
MAX_WEIGHT = 1000.0
_MAX_SCALE = 1000.0
_TOKENS = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)|(?P<bracket>[(\[\])])"
    r"|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<text>[^\\()\[\]:]+|:)"
)
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Segment:
    """A piece of text with one weight; 1.0 is neutral."""

    text: str
    weight: float


@dataclass(frozen=True)
class WeightedTokens:
    """Token ids and their weights, with the same number of rows for each prompt.

    Attributes:
      input_ids: (B, rows, max_length) int64.
      weights: (B, rows, max_length) float32; 1 for start, end and padding tokens.
      needed: how many of its rows each prompt needs; the others are empty.
    """

    input_ids: np.ndarray
    weights: np.ndarray
    needed: tuple[int, ...] = ()

    @property
    def flat_ids(self) -> np.ndarray:
        """(B * rows, max_length) int64, for the text encoder; rows of one prompt are adjacent.

        The pooled output of a prompt is that of its first row: every `rows`-th one.
        """
        return self.input_ids.reshape(-1, self.input_ids.shape[-1])

    def extended(self, tokenizer: ClipTokenizer, rows: int) -> WeightedTokens:
        """The same with empty rows at the end, so that each prompt has as many as `rows`."""
        count, own, length = self.input_ids.shape
        if rows == own:
            return self
        empty = np.broadcast_to(tokenizer([""]), (count, rows - own, length))
        ones = np.ones(empty.shape, np.float32)
        return WeightedTokens(
            np.concatenate([self.input_ids, empty], axis=1),
            np.concatenate([self.weights, ones], axis=1),
            self.needed,
        )


def parse_weights(text: str) -> list[list[Segment]]:
    r"""Parse the weights in a prompt, as AUTOMATIC1111's web UI does. Every text is valid.

    `(word:1.3)` multiplies by 1.3, `(word)` by 1.1, and `[word]` divides by 1.1; nested brackets
    multiply. `\(` `\)` `\[` `\]` `\\` are the characters themselves; other backslashes are dropped.
    A bracket that is not closed extends to the end of the prompt; one that was not opened is text,
    and so is a weight without its bracket. BREAK in capitals starts a new row of tokens; unlike in
    the web UI, inside brackets too. Adjacent segments of equal weight are merged. Weights are
    clipped to -1000..1000.

    Returns: for each part between BREAKs its segments, none of them empty. There is at least one
      part; an empty prompt is `[[Segment("", 1.0)]]`.
    Example:
        >>> from sdexport.runtime.text.prompt_weights import parse_weights
        >>> parse_weights("a (red:1.3) circle")[0][1]
        Segment(text='red', weight=1.3)
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
            close("(", BRACKET_FACTOR)
        elif value == "]" and kind == "bracket" and open_brackets["["]:
            close("[", 1 / BRACKET_FACTOR)
        else:
            parts.append(None if kind == "break" else value)
    while open_brackets["("]:
        close("(", BRACKET_FACTOR)
    while open_brackets["["]:
        close("[", 1 / BRACKET_FACTOR)
    return _segments(parts, weights[: len(parts)].tolist())


def _read(text: str) -> list[tuple[str, str]]:
    """The pieces of a prompt as (kind, text): escaped, bracket, weight, text or break."""
    found: list[tuple[str, str]] = []
    for match in _TOKENS.finditer(text):
        kind = match.lastgroup or "text"
        if kind == "text":
            parts = _BREAK.split(match[0])
            for number, part in enumerate(parts):
                part = part.lstrip() if number else part
                part = part.rstrip() if number < len(parts) - 1 else part
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
    """Token ids and weights of prompts of any length, in rows that the text encoder takes.

    Each row has its own start and end token. All prompts get as many rows as the longest one, by
    empty rows at the end: pass prompts and negative prompts in one call. Segments are tokenized
    separately.

    Args:
      prompts: one or more.
      comma_backtrack: if a row is full, search its last so many tokens for a comma and start the
        next row after it; the default of the web UI is 20. 0 splits wherever the row is full.
    Raises: InvalidArgumentError: `prompts` is one string, is empty or holds something else than
      valid Unicode strings; a negative comma_backtrack.
    """
    if isinstance(prompts, str):
        raise InvalidArgumentError("prompt: expected a list of prompts, got one string")
    if not prompts or comma_backtrack < 0:
        raise InvalidArgumentError(
            f"prompt: expected one or more prompts and a comma_backtrack of 0 or more, got "
            f"{len(prompts)} prompts and {comma_backtrack}"
        )
    return pack_rows(
        tokenizer, [list(_rows(tokenizer, prompt, comma_backtrack)) for prompt in prompts]
    )


def pack_rows(
    tokenizer: ClipTokenizer, prompts: Sequence[Sequence[tuple[list[int], list[float]]]]
) -> WeightedTokens:
    """Rows with start and end tokens and padding, as many for each prompt.

    Args:
      prompts: for each prompt its rows: ids and their weights, at most max_length - 2.
    """
    shape = (len(prompts), max(map(len, prompts)), tokenizer.max_length)
    input_ids = np.full(shape, tokenizer.pad_id, dtype=np.int64)
    weights = np.ones(shape, dtype=np.float32)
    input_ids[:, :, :2] = tokenizer.bos_id, tokenizer.eos_id
    for b, rows in enumerate(prompts):
        for r, (ids, factors) in enumerate(rows):
            input_ids[b, r, 1 : len(ids) + 2] = [*ids, tokenizer.eos_id]
            weights[b, r, 1 : len(ids) + 1] = factors
    return WeightedTokens(input_ids, weights, tuple(map(len, prompts)))


def _rows(
    tokenizer: ClipTokenizer, prompt: str, comma_backtrack: int
) -> Iterator[tuple[list[int], list[float]]]:
    """The ids and weights of each row, without start and end token."""
    if not isinstance(prompt, str):
        raise InvalidArgumentError(f"prompt: expected a string, got {type(prompt).__name__}")
    room = tokenizer.max_length - 2
    if room < 1:
        yield [], []
        return
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
            while cut and tokenizer.continues(ids[cut]):
                cut -= 1  # the vectors of an embedding stay in one row
            cut = cut or room
            if comma_backtrack and cut == room and ids[room] != comma:
                recent = range(max(0, room - comma_backtrack), room)
                cut = next((i + 1 for i in reversed(recent) if ids[i] == comma), room)
            yield ids[:cut], weights[:cut]
            ids, weights = ids[cut:], weights[cut:]
        if ids or number == 0 or number < len(parts) - 1:
            yield ids, weights


def apply_weights(
    hidden_states: np.ndarray, tokens: WeightedTokens, *, restore_mean: bool = True
) -> np.ndarray:
    """Multiply hidden states by the weights of their tokens, and join the rows of each prompt.

    Rows whose weights are all 1 are copied unchanged.

    Args:
      hidden_states: (B * rows, max_length, width) float32, the text encoder's output for
        `tokens.flat_ids`.
      restore_mean: scale each row so that its mean is what it was, as the "original" emphasis of
        the web UI does for one prompt; False is its "no norm". A row whose new mean is almost 0 is
        not scaled, where the web UI divides by it.
    Returns: (B, rows * max_length, width) float32, a new array.
    Raises: InvalidArgumentError: another shape or dtype.
    """
    count, rows, length = tokens.input_ids.shape
    if (
        hidden_states.ndim != 3
        or hidden_states.shape[:2] != (count * rows, length)
        or hidden_states.dtype != np.float32
    ):
        raise InvalidArgumentError(
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
