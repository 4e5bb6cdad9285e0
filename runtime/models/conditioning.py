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


SIZE_ARGUMENTS = (
    *("original_size", "target_size", "crops_coords_top_left"),
    *("negative_original_size", "negative_target_size", "negative_crops_coords_top_left"),
    *("aesthetic_score", "negative_aesthetic_score"),
)
"""The arguments of a pipeline call that SizeConditioning holds."""


@dataclass(frozen=True)
class SizeConditioning:
    """SDXL's size conditioning: each size is (height, width) in pixels; the refiner takes scores.

    has_image: whether there is an input image, on which the defaults for negative prompts depend.

    Source: arXiv 2307.01952, sections 2.2 and 2.5.
    """

    original_size: tuple[int, int]
    target_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int] = (0, 0)
    negative_original_size: tuple[int, int] | None = None
    negative_target_size: tuple[int, int] | None = None
    negative_crops_coords_top_left: tuple[int, int] = (0, 0)
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    has_image: bool = False

    @classmethod
    def checked(cls, image_size: tuple[int, int], has_image: bool, **arguments: object) -> Self:
        """From the arguments of a pipeline call; sizes that are None are `image_size`.

        Raises: InvalidArgumentError: not a pair of integers, or not a number.
        """
        sizes: dict[str, Any] = {}
        for name, value in arguments.items():
            if name.endswith("score"):
                sizes[name] = checks.number(name, value, 0, 100)
            elif value is not None:
                sizes[name] = _pair(name, value, 0 if "crops" in name else 1)
        defaults = {"original_size": image_size, "target_size": image_size}
        return cls(**{**defaults, **sizes}, has_image=has_image)

    def time_ids(self, count: int, *, scored: bool, guided: bool) -> np.ndarray:
        """(count, 6) float32, or (count, 5) if scored; twice as many rows if guided."""
        crops = self.crops_coords_top_left
        if scored:
            positive = [*self.original_size, *crops, self.aesthetic_score]
        else:
            positive = [*self.original_size, *crops, *self.target_size]
        rows = [self._negative(scored=scored), positive] if guided else [positive]
        return np.repeat(np.array(rows, np.float32), count, axis=0)

    def _negative(self, *, scored: bool) -> list[float]:
        """The row of negative prompts, with the defaults of each of diffusers' pipelines."""
        original = self.negative_original_size or self.original_size
        target = self.negative_target_size or self.target_size
        crops = self.negative_crops_coords_top_left
        if scored:
            return [*original, *crops, self.negative_aesthetic_score]
        if self.has_image:
            return [*original, *self.crops_coords_top_left, *target]
        if self.negative_original_size and self.negative_target_size:
            return [*original, *crops, *target]
        return [*self.original_size, *self.crops_coords_top_left, *self.target_size]


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
