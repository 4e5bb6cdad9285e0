"""What a call of the pipeline gives back, and what each picture says of how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image

from sdexport.runtime.images.metadata import Parameters, to_image
from sdexport.runtime.inputs import ImageInputs, Noise
from sdexport.runtime.timestep_plan import TimestepPlan

STAGES = ("encode", "denoise", "decode")


@dataclass(frozen=True)
class Result:
    """What a call of the pipeline gives.

    images: Pillow images, each with its parameters in `info["parameters"]`.
    latents: (B, C, H/8, W/8) float32, as decoded.
    parameters: one entry an image.
    seconds: time spent in each stage: encode, denoise, decode.
    """

    images: list[Image.Image]
    latents: np.ndarray
    parameters: list[Parameters]
    seconds: Mapping[str, float]

    @classmethod
    def of(
        cls,
        pixels: np.ndarray,
        latents: np.ndarray,
        parameters: list[Parameters],
        clock: Sequence[float],
    ) -> Self:
        """From pixels (B, H, W, 3) uint8, and the clock before the first stage and after each."""
        images = [to_image(p, q) for p, q in zip(pixels, parameters, strict=True)]
        seconds = dict(zip(STAGES, np.diff(clock).tolist(), strict=True))
        return cls(images, latents, parameters, seconds)


def describe(
    prompts: Sequence[str],
    negatives: Sequence[str],
    images: ImageInputs,
    plan: TimestepPlan,
    noise: Noise,
    *,
    guidance_scale: float,
    eta: float,
    model: str,
    drawn: bool,
) -> list[Parameters]:
    """The parameters of each picture.

    Args:
      drawn: whether the seeds had a part in them.
    """
    return [
        Parameters(
            prompt=prompt,
            negative_prompt=negative,
            num_inference_steps=plan.num_inference_steps,
            scheduler=plan.name,
            guidance_scale=float(guidance_scale),
            seed=noise.seeds[i] if drawn else None,
            width=images.width,
            height=images.height,
            model=model,
            eta=float(eta),
            strength=plan.strength,
            batch_size=1 if noise.per_image else len(prompts),
            batch_index=0 if noise.per_image else i,
        )
        for i, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True))
    ]
