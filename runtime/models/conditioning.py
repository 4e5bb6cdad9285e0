"""Further inputs of a denoiser: pooled embeddings, sizes, the guidance scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sdexport.engines import TensorSpec
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks

Configs = Mapping[str, Any]
"""The configurations of a checkpoint by folder, each with its keys as attributes."""
SCORED_TIME_IDS = 5
"""Width of time_ids with an aesthetic score: the score takes the place of the target size."""


@dataclass(frozen=True)
class SizeConditioning:
    """SDXL's size conditioning: each size is (height, width) in pixels; the refiner takes scores.

    Source: arXiv 2307.01952, sections 2.2 and 2.5.
    """

    original_size: tuple[int, int]
    target_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int] = (0, 0)
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    @classmethod
    def checked(
        cls,
        original_size: object,
        target_size: object,
        crops_coords_top_left: object,
        aesthetic_score: object,
        negative_aesthetic_score: object,
    ) -> Self:
        """Raises: InvalidArgumentError: not a pair of integers, or not a number."""
        return cls(
            _pair("original_size", original_size, 1),
            _pair("target_size", target_size, 1),
            _pair("crops_coords_top_left", crops_coords_top_left, 0),
            checks.number("aesthetic_score", aesthetic_score, 0, 100),
            checks.number("negative_aesthetic_score", negative_aesthetic_score, 0, 100),
        )

    def time_ids(self, count: int, *, scored: bool, guided: bool) -> np.ndarray:
        """(count, 6) float32, or (count, 5) if scored; twice as many rows if guided."""
        base = [*self.original_size, *self.crops_coords_top_left]
        rows = [
            [*base, score] if scored else [*base, *self.target_size]
            for score in (self.negative_aesthetic_score, self.aesthetic_score)
        ]
        return np.repeat(np.array(rows if guided else rows[1:], np.float32), count, axis=0)


@dataclass(frozen=True)
class ConditioningRequest:
    """What conditioning inputs are computed from.

    count: images. guided: whether an unconditional half comes first. scored: whether the package
    takes aesthetic scores. pooled: (count, width), or (2 count, width) if guided, float32.
    """

    count: int
    guided: bool
    guidance_scale: float
    sizes: SizeConditioning
    scored: bool = False
    pooled: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """Rows of the denoiser's batch."""
        return self.count * (2 if self.guided else 1)


@dataclass(frozen=True)
class ConditioningInput:
    """One more input of a family's denoiser.

    name: in the graph, and as the keyword of the PyTorch module.
    shape: from the checkpoint's configurations, the input's shape; sizes, and names of dynamic
      dimensions, the first of which is "batch".
    value: from the request and the graph's input, (rows, ...) float32.
    added: whether diffusers takes it in `added_cond_kwargs` instead of as a keyword.
    full_precision: whether it stays float32 in graphs of lower precision.
    example_below: random integers below this stand for it when the graph is traced and recorded;
      None takes standard normal numbers.
    """

    name: str
    shape: Callable[[Configs], tuple[int | str, ...]]
    value: Callable[[ConditioningRequest, TensorSpec], np.ndarray]
    added: bool = False
    full_precision: bool = False
    example_below: int | None = None


def conditioning_values(
    inputs: Sequence[ConditioningInput], specs: Sequence[TensorSpec], request: ConditioningRequest
) -> dict[str, np.ndarray]:
    """The values of those inputs that a denoiser's graph has, by name.

    Raises: InvalidArgumentError: pooled embeddings are missing.
    """
    present = {spec.name: spec for spec in specs}
    return {
        each.name: each.value(request, present[each.name])
        for each in inputs
        if each.name in present
    }


def guidance_embedding(scale: float, width: int) -> np.ndarray:
    """The guidance scale as a consistency model takes it, (1, width) float32.

    Source: the sinusoids of arXiv 1706.03762, section 3.5, over 1000 (scale - 1), in the layout of
      diffusers.
    """
    half = width // 2
    frequencies = np.exp(np.arange(half) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (scale - 1.0) * frequencies
    embedding = np.zeros(width)
    embedding[: 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)])
    return embedding.astype(np.float32)[None]


def _pair(name: str, value: object, low: int) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidArgumentError(f"{name} must be (height, width), got {shown(value)}")
    first, second = (checks.integer(name, side, low, 2**20) for side in value)
    return first, second
