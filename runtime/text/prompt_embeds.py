"""The prompt embeddings of a batch: from texts, from the caller's arrays, or from both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks

Embeds = np.ndarray | Callable[[int, int], np.ndarray]
"""Embeddings for all steps, or a function from (i, steps) to those of step i of `steps`."""


@dataclass(frozen=True)
class TextEmbeds:
    """Embeddings of texts.

    Attributes:
      embeds: (B, n, width) float32.
      pooled: (B, width) float32 for models with pooled embeddings, such as SDXL; else None.
      lengths: how many of the n tokens each text needs; the rest of them are empty rows that make
        all texts equally long.
    """

    embeds: np.ndarray
    pooled: np.ndarray | None = None
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class EmbedArguments:
    """The embeddings among the arguments of a pipeline call.

    Attributes:
      prompt_embeds: (1 or B, n, width) float32, or a function that returns such an array.
      negative_prompt_embeds: (1 or B, n, width) float32.
      pooled_prompt_embeds, negative_pooled_prompt_embeds: (1 or B, width) float32.
    """

    prompt_embeds: Embeds | None = None
    negative_prompt_embeds: np.ndarray | None = None
    pooled_prompt_embeds: np.ndarray | None = None
    negative_pooled_prompt_embeds: np.ndarray | None = None


Text = str | tuple[str, ...]
"""A text, or one for each text encoder."""
Encode = Callable[[list[Text], int, Sequence[int]], TextEmbeds]
"""Texts to embeddings. The number is how many of the first texts are negative prompts; then follows
for each text the index of the variant of the text encoders that encodes it."""


def prepare_embeds(
    encode: Encode,
    prompts: list[Text],
    negatives: list[Text] | None,
    arguments: EmbedArguments,
    *,
    zeros: bool = False,
    variants: Sequence[int],
) -> tuple[Embeds, np.ndarray | None]:
    """The embeddings that `denoise` takes: rows for the negative prompts, then for the prompts.

    Args:
      negatives: as many as prompts; None if there is no unconditional pass.
      arguments: replace the embeddings of the texts.
      zeros: the negative embeddings are zeros, unless they are among the arguments.
      variants: for each image that of the text encoders.
    Returns: (B or 2B, n, width) float32 or a function that returns it, and the pooled embeddings,
      (B or 2B, width) float32, if the model has them.
    Raises: InvalidArgumentError: embeddings whose shapes do not fit.
    """
    count = len(prompts)
    from_texts = arguments.prompt_embeds is None and arguments.negative_prompt_embeds is None
    if from_texts and (negatives is None or not zeros):
        # in one call, so that all rows have the same length
        below = variants if negatives else ()
        both = encode([*(negatives or ()), *prompts], len(below), [*below, *variants])
        return both.embeds, both.pooled
    positive, pooled = _positive(encode, prompts, arguments, variants)
    negative = None
    if negatives is not None:
        like = positive, pooled
        negative, negative_pooled = _negative(
            partial(encode, negatives, count, variants), arguments, like, count, zeros=zeros
        )
        if pooled is not None:
            if negative_pooled is None:
                raise InvalidArgumentError(
                    "negative_pooled_prompt_embeds must come with negative_prompt_embeds"
                )
            pooled = _concatenate(negative_pooled, pooled)
    if callable(positive):
        return _EmbedsPerStep(positive, negative, count), pooled
    return _concatenate(negative, _rows("prompt_embeds", positive, count, 3)), pooled


def _positive(
    encode: Encode, prompts: list[Text], arguments: EmbedArguments, variants: Sequence[int]
) -> tuple[Embeds, np.ndarray | None]:
    """The embeddings of the prompts, as they are in the arguments, and one pooled row for each."""
    pooled = arguments.pooled_prompt_embeds
    if pooled is not None:
        pooled = _rows("pooled_prompt_embeds", pooled, len(prompts), 2)
    if arguments.prompt_embeds is not None:
        return arguments.prompt_embeds, pooled
    texts = encode(prompts, 0, variants)
    return texts.embeds, texts.pooled


def _negative(
    encode: Callable[[], TextEmbeds],
    arguments: EmbedArguments,
    like: tuple[Embeds, np.ndarray | None],
    count: int,
    *,
    zeros: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """A row for each of `count` negative prompts, and its pooled embeddings."""
    if arguments.negative_prompt_embeds is not None:
        pooled = arguments.negative_pooled_prompt_embeds
        if pooled is not None:
            pooled = _rows("negative_pooled_prompt_embeds", pooled, count, 2)
        rows = _rows("negative_prompt_embeds", arguments.negative_prompt_embeds, count, 3)
        return rows, pooled
    if zeros:
        positive, pooled = like
        first = positive(0, 1) if callable(positive) else positive
        rows = _rows("prompt_embeds", first, count, 3)
        return np.zeros_like(rows), None if pooled is None else np.zeros_like(pooled)
    texts = encode()
    return texts.embeds, texts.pooled


class _EmbedsPerStep:
    """Embeddings that a function returns for each step, after the constant negative ones."""

    def __init__(
        self,
        positive: Callable[[int, int], np.ndarray],
        negative: np.ndarray | None,
        count: int,
    ) -> None:
        self._positive, self._negative, self._count = positive, negative, count
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, i: int, steps: int) -> np.ndarray:
        """The same object for as long as the function returns the same one."""
        embeds, last = self._positive(i, steps), self._last
        if last is None or last[0] is not embeds:
            rows = _rows("prompt_embeds", embeds, self._count, 3)
            self._last = last = (embeds, _concatenate(self._negative, rows))
        return last[1]


def _rows(name: str, embeds: object, count: int, dims: int) -> np.ndarray:
    """An argument of 1 or `count` rows, repeated to `count` rows."""
    array = checks.float_array(name, embeds, (None,) * dims)
    if not array.size or count % len(array):
        raise InvalidArgumentError(f"{name}: expected 1 or {count} rows, got {array.shape}")
    return np.repeat(array, count // len(array), axis=0)


def _concatenate(negative: np.ndarray | None, positive: np.ndarray) -> np.ndarray:
    if negative is None:
        return positive
    if negative.shape[1:] != positive.shape[1:]:
        raise InvalidArgumentError(
            f"negative embeddings {negative.shape} and prompt embeddings {positive.shape} must "
            "have rows of the same shape"
        )
    return np.concatenate([negative, positive])
