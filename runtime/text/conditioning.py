"""Embeddings as the denoising loop wants them: of texts, or the caller's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdexport.runtime import checks

Embeds = np.ndarray | Callable[[int, int], np.ndarray]
"""Embeddings for the whole run, or for step i of so many."""


@dataclass(frozen=True)
class Encoded:
    """Embeddings of texts: embeds (B, n, width); pooled (B, width), which only SDXL has."""

    embeds: np.ndarray
    pooled: np.ndarray | None = None


@dataclass(frozen=True)
class GivenEmbeds:
    """Embeddings that the caller brings: (1 or B, n, width), pooled ones (1 or B, width)."""

    prompt_embeds: Embeds | None = None
    negative_prompt_embeds: np.ndarray | None = None
    pooled_prompt_embeds: np.ndarray | None = None
    negative_pooled_prompt_embeds: np.ndarray | None = None


def condition(
    encode: Callable[[list[str], int], Encoded],
    prompts: list[str],
    negatives: list[str] | None,
    given: GivenEmbeds,
    *,
    zeros: bool = False,
) -> tuple[Embeds, np.ndarray | None]:
    """What `denoise` asks for: one row for each prompt, after one for each negative if there are.

    Args:
      encode: texts to embeddings; how many of the first are negative.
      negatives: None if no unconditional pass is run at all.
      given: takes the place of the texts.
      zeros: no negative prompt was given, and the model was trained to take zeros for it.
    Returns: embeddings, and pooled ones if the model has them.
    Raises: ValueError: embeddings do not fit.
    """
    count = len(prompts)
    theirs = given.prompt_embeds is not None or given.negative_prompt_embeds is not None
    if not theirs and not (zeros and negatives is not None):
        # in one call, so that both are equally long
        both = encode([*(negatives or ()), *prompts], len(negatives or ()))
        return both.embeds, both.pooled
    texts = encode(prompts, 0) if given.prompt_embeds is None else None
    positive = texts.embeds if texts else given.prompt_embeds
    pooled = _rows("pooled_prompt_embeds", given.pooled_prompt_embeds, count, 2)
    pooled = texts.pooled if texts else pooled
    if negatives is None:
        negative, negative_pooled = None, None
    elif given.negative_prompt_embeds is not None:
        negative = _rows("negative_prompt_embeds", given.negative_prompt_embeds, count, 3)
        name = "negative_pooled_prompt_embeds"
        negative_pooled = _rows(name, given.negative_pooled_prompt_embeds, count, 2)
    elif zeros:
        like = positive(0, 1) if callable(positive) else positive
        negative = np.zeros_like(_rows("prompt_embeds", like, count, 3))
        negative_pooled = None if pooled is None else np.zeros_like(pooled)
    else:
        of_texts = encode(negatives, count)
        negative, negative_pooled = of_texts.embeds, of_texts.pooled
    if negatives is not None and pooled is not None and negative_pooled is None:
        raise ValueError("negative_pooled_prompt_embeds must come with negative_prompt_embeds")
    pooled = None if pooled is None else _stacked(negative_pooled, pooled)
    if callable(positive):
        return _EachStep(positive, negative, count), pooled
    rows = _rows("prompt_embeds", positive, count, 3)
    assert rows is not None  # for the type checker: there were texts or embeddings
    return _stacked(negative, rows), pooled


class _EachStep:
    """Embeddings that change over the steps, below the negative ones if there are any."""

    def __init__(
        self,
        positive: Callable[[int, int], np.ndarray],
        negative: np.ndarray | None,
        count: int,
    ) -> None:
        self._positive, self._negative, self._count = positive, negative, count
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, i: int, steps: int) -> np.ndarray:
        """The same object as long as the function gives the same one."""
        given, last = self._positive(i, steps), self._last
        if last is None or last[0] is not given:
            own = _rows("prompt_embeds", given, self._count, 3)
            if own is None:
                raise ValueError("prompt_embeds: the function gave None")
            self._last = last = (given, _stacked(self._negative, own))
        return last[1]


def _rows(name: str, given: np.ndarray | None, count: int, ndim: int) -> np.ndarray | None:
    """Embeddings as one row for each picture; None stays None."""
    if given is None:
        return None
    given = checks.float_array(name, given, (None,) * ndim)
    if not given.size or count % len(given):
        raise ValueError(f"{name}: expected 1 or {count} rows, got {given.shape}")
    return np.repeat(given, count // len(given), axis=0)


def _stacked(negative: np.ndarray | None, positive: np.ndarray) -> np.ndarray:
    if negative is None:
        return positive
    if negative.shape[1:] != positive.shape[1:]:
        raise ValueError(
            f"negative embeddings {negative.shape} and embeddings of the prompt {positive.shape} "
            "must have rows of one shape"
        )
    return np.concatenate([negative, positive])
