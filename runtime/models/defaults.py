"""What a pipeline of diffusers takes where the caller says nothing, family by family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Defaults:
    """Arguments of a pipeline of diffusers; strength is None for text to image.

    Source: the signatures of diffusers 0.42's pipelines; tests/parity compares them.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    strength: float | None = None


def defaults(*, xl: bool, told_scale: bool, image: bool, mask: bool) -> Defaults:
    """Those of a kind of model and task.

    Args:
      xl: SDXL or its refiner. told_scale: a latent consistency model, whose UNet takes the guidance
        scale as an input. image, mask: what is painted from.
    """
    if told_scale:
        return Defaults(4, 8.5, 1.0 if mask else 0.8 if image else None)
    if mask:
        return Defaults(strength=0.9999 if xl else 1.0)
    if xl:
        return Defaults(guidance_scale=5.0, strength=0.3 if image else None)
    return Defaults(strength=0.8 if image else None)
