"""What some UNets are told beside latents and prompts: sizes, scores and the guidance scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sdexport.engines import Session
from sdexport.engines.messages import shown
from sdexport.runtime import checks


@dataclass(frozen=True)
class Sizes:
    """What SDXL is told of a picture, each (height, width) in pixels, and what its refiner is.

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
        """Raises: ValueError: no pairs of whole numbers, or no scores."""
        return cls(
            _pair("original_size", original_size, 1),
            _pair("target_size", target_size, 1),
            _pair("crops_coords_top_left", crops_coords_top_left, 0),
            checks.number("aesthetic_score", aesthetic_score, 0, 100),
            checks.number("negative_aesthetic_score", negative_aesthetic_score, 0, 100),
        )

    def time_ids(self, count: int, *, scored: bool, guided: bool) -> np.ndarray:
        """(B, 6), or (B, 5) for the refiner, float32; twice as many rows if guided.

        Args:
          scored: whether an aesthetic score takes the place of the target size.
        """
        base = [*self.original_size, *self.crops_coords_top_left]
        rows = [
            [*base, score] if scored else [*base, *self.target_size]
            for score in (self.negative_aesthetic_score, self.aesthetic_score)
        ]
        return np.repeat(np.array(rows if guided else rows[1:], np.float32), count, axis=0)


def _pair(name: str, value: object, low: int) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} must be (height, width), got {shown(value)}")
    first, second = (checks.integer(name, side, low, 2**20) for side in value)
    return first, second


def guidance_embedding(scale: float, width: int) -> np.ndarray:
    """How a consistency model is told the guidance scale, (1, width) float32.

    Source: the sinusoids of arXiv 1706.03762, section 3.5, over 1000 (scale - 1), as diffusers lays
      them out.
    """
    half = width // 2
    frequencies = np.exp(np.arange(half) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (scale - 1.0) * frequencies
    embedding = np.zeros(width)
    embedding[: 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)])
    return embedding.astype(np.float32)[None]


def conditions(
    unet: Session,
    index: Mapping[str, Any],
    pooled: np.ndarray | None,
    sizes: Sizes,
    guidance_scale: float,
    count: int,
    *,
    guided: bool,
) -> dict[str, np.ndarray]:
    """The further inputs that a UNet asks for, a row for each of the embeddings.

    Args:
      index: the package's model_index.json.
      pooled: (B or 2B, width) from the text encoders.
      count: of pictures.
    Raises: ValueError: the UNet wants pooled embeddings and there are none.
    """
    wanted = {spec.name: spec.shape for spec in unet.inputs}
    rows = count * (2 if guided else 1)
    found: dict[str, np.ndarray] = {}
    if "text_embeds" in wanted:
        if pooled is None:
            raise ValueError("pooled_prompt_embeds must come with prompt_embeds for this package")
        scored = bool(index.get("requires_aesthetics_score")) or wanted["time_ids"][-1] == 5
        found["text_embeds"] = pooled
        found["time_ids"] = sizes.time_ids(count, scored=scored, guided=guided)
    if "timestep_cond" in wanted:
        width = wanted["timestep_cond"][-1]
        if not isinstance(width, int):
            raise ValueError("unet: input 'timestep_cond' must have a fixed width")
        found["timestep_cond"] = np.repeat(guidance_embedding(guidance_scale, width), rows, axis=0)
    return found
