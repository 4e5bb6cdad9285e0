"""Embeddings of prompts in Compel's syntax.

A weight of 1 or more moves the hidden state of a token away from that of the same place in the
empty prompt. A weight below 1 does so too, and blends with the embeddings of the prompt in which
the attention to the fragment's tokens is masked: at weight 0 that is all that remains.

Source: compel 2.5, compel/compel.py and compel/embeddings_provider.py, with long prompts divided at
the ends of sentences.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from sdexport.runtime.text.compel_parser import CompelPart, parse_compel
from sdexport.runtime.text.prompt_embeds import TextEmbeds
from sdexport.runtime.text.prompt_weights import Segment
from sdexport.runtime.text.tokenizer import ClipTokenizer

logger = logging.getLogger(__name__)

Run = Callable[[np.ndarray, np.ndarray | None], TextEmbeds]
"""Rows of ids, and their attention mask unless all of it is 1, (rows, S) int64, to embeddings."""

_MIN_WEIGHT = 1e-5
_SENTENCE, _PHRASE = (".</w>",), (".</w>", ",</w>", ";</w>", ":</w>")


def encode_compel(
    tokenizer: ClipTokenizer,
    texts: Sequence[str],
    run: Callable[[int], Run],
    length: int = 0,
) -> TextEmbeds:
    """Embeddings of texts, the shorter ones with empty rows at the end.

    Args:
      run: for the index of a text the function that runs its rows.
      length: how long they become at least.
    Raises: InvalidArgumentError: see `parse_compel`; not valid Unicode.
    """
    encoders = [_Encoder(tokenizer, run(i)) for i in range(len(texts))]
    embeds = [each.embeds(text) for each, text in zip(encoders, texts, strict=True)]
    pooled = [each.pooled(text) for each, text in zip(encoders, texts, strict=True)]
    rows = max(length, *map(len, embeds))
    no_pooled = any(each is None for each in pooled)
    return TextEmbeds(
        np.stack([e.padded(each, rows) for e, each in zip(encoders, embeds, strict=True)]),
        None if no_pooled else np.concatenate([each for each in pooled if each is not None]),
        tuple(map(len, embeds)),
    )


class _Encoder:
    def __init__(self, tokenizer: ClipTokenizer, run: Run) -> None:
        self._tokenizer, self._run = tokenizer, run
        self._length = tokenizer.max_length

    @cached_property
    def _empty(self) -> np.ndarray:
        """The embeddings of the empty prompt, (S, width)."""
        empty: np.ndarray = self._run(self._tokenizer([""]), None).embeds[0]
        return empty

    def embeds(self, text: str) -> np.ndarray:
        """(n, width) float32 of a text."""
        parsed = parse_compel(text)
        if parsed.ignored:
            logger.warning("prompt: %s has no effect", ", ".join(dict.fromkeys(parsed.ignored)))
        return np.concatenate([self._part(part) for part in parsed.parts])

    def pooled(self, text: str) -> np.ndarray | None:
        """(1, width) float32 of the whole text, in which as in Compel the syntax is text."""
        ids = self._tokenizer.encode(text)[: self._length - 2]
        return self._run(self._row(ids)[None], None).pooled

    def padded(self, embeds: np.ndarray, length: int) -> np.ndarray:
        """The embeddings with those of the empty prompt at the end."""
        missing = (length - len(embeds)) // self._length
        return np.concatenate([embeds, *[self._empty] * missing])

    def _part(self, part: CompelPart) -> np.ndarray:
        parts = [self._weighted(segments) for segments in part.prompts]
        length = max(map(len, parts))
        parts = [self.padded(each, length) for each in parts]
        embeds = parts[0] if len(parts) == 1 else _mixed(parts, part.shares)
        if part.weight != 1:
            empty = np.tile(self._empty, (length // self._length, 1))
            embeds = empty + (embeds - empty) * np.float32(part.weight)
        return embeds

    def _weighted(self, segments: Sequence[Segment]) -> np.ndarray:
        """Segments with their weights: the base, blended with what is left without each."""
        found = [self._tokenizer.encode(segment.text) for segment in segments]
        ids = [number for each in found for number in each]
        weights = [s.weight for s, each in zip(segments, found, strict=True) for _ in each]
        rows, factors, places = self._rows(ids, weights)
        parts, shares = [self._moved(rows, factors, None)], [1.0]
        start = 0
        for segment, own in zip(segments, found, strict=True):
            stop = start + len(own)
            if segment.weight < 1 and own:
                mask = np.ones(rows.shape, np.int64)
                mask.reshape(-1)[places[start] : places[stop - 1] + 1] = 0
                mask[:, [0, -1]] = 1  # the ends of each row
                parts.append(self._moved(rows, factors, mask))
                weight = max(_MIN_WEIGHT, segment.weight)
                shares.append(math.tan((1.0 - weight) * math.pi / 2))
            start = stop
        total = sum(shares)
        return parts[0] if len(parts) == 1 else _mixed(parts, [each / total for each in shares])

    def _moved(self, rows: np.ndarray, weights: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """empty + weight * (hidden state - empty) for each token, (n, width)."""
        states = self._run(rows, mask).embeds
        factors = weights[..., None]
        moved = self._empty + (states - self._empty) * factors
        embeds: np.ndarray = np.where(factors == 1, states, moved)
        return embeds.reshape(-1, embeds.shape[-1])

    def _rows(
        self, ids: list[int], weights: list[float]
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Rows of ids, the weights in them, and the place of each id in the rows."""
        rows: list[np.ndarray] = []
        factors: list[np.ndarray] = []
        places: list[int] = []
        while True:
            cut = self._cut(ids)
            own = ids[:cut]
            rows.append(self._row(own))
            factors.append(np.ones(self._length, np.float32))
            factors[-1][1 : len(own) + 1] = weights[:cut]
            begin = (len(rows) - 1) * self._length + 1
            places += range(begin, begin + len(own))
            ids, weights = ids[cut:], weights[cut:]
            if not ids:
                return np.stack(rows), np.stack(factors), places

    def _row(self, ids: list[int]) -> np.ndarray:
        row = np.full(self._length, self._tokenizer.pad_id, np.int64)
        row[: len(ids) + 2] = [self._tokenizer.bos_id, *ids, self._tokenizer.eos_id]
        return row

    def _cut(self, ids: list[int]) -> int:
        """How many ids go into the next row: up to the end of a sentence, phrase or word."""
        room = self._length - 2
        if len(ids) <= room:
            return room
        tokens = [self._tokenizer.token(number) for number in ids[:room]]
        for ends in (_SENTENCE, _PHRASE):
            for i in reversed(range(room)):
                if tokens[i] in ends:
                    return i + 1
        return next((i + 1 for i in reversed(range(room)) if tokens[i].endswith("</w>")), room)


def _mixed(parts: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    mixed = np.zeros_like(parts[0])
    for part, share in zip(parts, shares, strict=True):
        mixed += part * np.float32(share)
    return mixed
