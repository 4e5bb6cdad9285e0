"""Prompt weights and long prompts as ComfyUI reads them: `(word:1.3)`, `embedding:name`.

Only round brackets set weights. A weight moves the hidden state of a token away from that of the
same place in the empty prompt, or towards it; nothing is normalised.

Source: ComfyUI 0.3, comfy/sd1_clip.py.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from sdexport.engines.messages import shown
from sdexport.runtime.text.prompt_weights import (
    BRACKET_FACTOR,
    MAX_WEIGHT,
    Segment,
    WeightedTokens,
    pack_rows,
)
from sdexport.runtime.text.tokenizer import ClipTokenizer

logger = logging.getLogger(__name__)

MAX_DEPTH = 100
"""Brackets that are nested more deeply are text."""
_WHOLE = 8
"""A segment of fewer tokens is not divided between two rows."""
_EMBEDDING = "embedding:"
_BEFORE_EMBEDDING = re.compile(rf"[ \n](?={_EMBEDDING})")
_FILE_ENDING = re.compile(r"\.(?:safetensors|pt|bin)$")
_ESCAPES = {r"\)": "\0\1", r"\(": "\0\2"}


def parse_comfyui(text: str) -> list[Segment]:
    r"""Parse the weights in a prompt, as ComfyUI does. Every text is valid.

    `(word:1.3)` sets the weight, whatever brackets are around it; `(word)` multiplies that of the
    brackets around it by 1.1. `\\(` and `\\)` are the characters themselves. Brackets that have no
    counterpart are text. Weights are clipped to -1000..1000; infinity and NaN are text.

    Example:
        >>> from sdexport.runtime.text.comfyui_weights import parse_comfyui
        >>> [(s.text, round(s.weight, 2)) for s in parse_comfyui("a ((red:1.3) round) circle")]
        [('a ', 1.0), ('red', 1.3), (' round', 1.1), (' circle', 1.0)]
    """
    for escape, code in _ESCAPES.items():
        text = text.replace(escape, code)
    segments: list[Segment] = []
    waiting = [_pieces(text, 1.0)]
    while waiting:
        found = next(waiting[-1], None)
        if found is None:
            waiting.pop()
            continue
        piece, weight = found
        in_brackets = len(piece) >= 2 and piece[0] == "(" and piece[-1] == ")"
        if in_brackets and len(waiting) <= MAX_DEPTH:
            waiting.append(_pieces(*_weight(piece[1:-1], weight)))
        else:
            for escape, code in _ESCAPES.items():
                piece = piece.replace(code, escape[1])
            segments.append(Segment(piece, weight))
    return segments


def _weight(text: str, outer: float) -> tuple[str, float]:
    """The text in a pair of brackets without its weight, and the weight."""
    weight = outer * BRACKET_FACTOR
    colon = text.rfind(":")
    if colon > 0:
        try:
            number = float(text[colon + 1 :])
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            text, weight = text[:colon], number
    return text, min(max(weight, -MAX_WEIGHT), MAX_WEIGHT)


def _pieces(text: str, weight: float) -> Iterator[tuple[str, float]]:
    """The text divided at its outermost brackets, each piece with the weight.

    As in ComfyUI, after a closing bracket too many the next pair of brackets is text.
    """
    start = level = 0
    for match in re.finditer(r"[()]", text):
        if match[0] == "(":
            if level == 0 and start < match.start():
                yield text[start : match.start()], weight
                start = match.start()
            level += 1
        else:
            level -= 1
            if level == 0:
                yield text[start : match.end()], weight
                start = match.end()
    if start < len(text):
        yield text[start:], weight


def tokenize_comfyui(tokenizer: ClipTokenizer, prompts: Sequence[str]) -> WeightedTokens:
    """Token ids and weights of prompts of any length, in rows that the text encoder takes.

    A segment of fewer than 8 tokens that does not fit into a row begins the next one.

    Args:
      prompts: one or more strings.
    Raises: InvalidArgumentError: a prompt is not valid Unicode.
    """
    return pack_rows(tokenizer, [_rows(tokenizer, prompt) for prompt in prompts])


def _rows(tokenizer: ClipTokenizer, prompt: str) -> list[tuple[list[int], list[float]]]:
    rows: list[tuple[list[int], list[float]]] = [([], [])]
    room = tokenizer.max_length - 2
    if room < 1:
        return rows
    for segment in parse_comfyui(prompt):
        for text in _BEFORE_EMBEDDING.split(segment.text):
            for ids in _groups(tokenizer, text):
                divided = len(ids) >= _WHOLE
                while ids:
                    free = room - len(rows[-1][0])
                    if len(ids) > free and not divided and rows[-1][0]:
                        free = 0
                    rows[-1][0].extend(ids[:free])
                    rows[-1][1].extend([segment.weight] * len(ids[:free]))
                    ids = ids[free:]
                    if ids:
                        rows.append(([], []))
    return rows


def _groups(tokenizer: ClipTokenizer, text: str) -> Iterator[list[int]]:
    """The ids of a text; those of the embedding at its beginning apart."""
    if text.startswith(_EMBEDDING):
        name, _, text = text.removeprefix(_EMBEDDING).partition(" ")
        plain = _FILE_ENDING.sub("", name.strip("\n").rstrip(","))
        word = tokenizer.embedding(plain)
        if word is None:
            logger.warning(
                "prompt: there is no embedding %s, it is left out; add it with --embedding when "
                "you export",
                shown(plain),
            )
        else:
            yield tokenizer.encode(tokenizer.expand(word))
        text = f"{name[len(name.rstrip(',')) :]} {text}"
    yield tokenizer.encode(text)


def interpolate(hidden_states: np.ndarray, empty: np.ndarray, tokens: WeightedTokens) -> np.ndarray:
    """Move hidden states away from those of the empty prompt by the weights of their tokens.

    empty + weight * (hidden_states - empty), which leaves tokens of weight 1 as they are.

    Args:
      hidden_states: (B * rows, max_length, width) float32, the text encoder's output for
        `tokens.flat_ids`.
      empty: (B, max_length, width) float32, its output for the empty prompt, for each prompt.
    Returns: (B, rows * max_length, width) float32, a new array.
    """
    count, rows, length = tokens.input_ids.shape
    weights = tokens.weights[..., None]
    states = hidden_states.reshape(count, rows, length, -1)
    moved = (states - empty[:, None]) * weights + empty[:, None]
    embeds: np.ndarray = np.where(weights == 1, states, moved)
    return embeds.reshape(count, rows * length, -1)
