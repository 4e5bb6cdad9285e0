"""The arguments of a pipeline call, checked and turned into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.images.loading import ImageInput, load_image, load_mask, resize
from sdexport.runtime.images.pixels import to_sample
from sdexport.runtime.models.latent_space import LatentSpace
from sdexport.runtime.text.prompt_embeds import Embeds

MAX_SIDE = 16384
"""Largest height and width in pixels."""


@dataclass(frozen=True)
class ImageInputs:
    """The size to generate, in pixels, and the images to start from.

    image: (n, 3, height, width) float32 in -1..1. mask: (1, 1, height, width) float32, 0 or 1.
    latents: (n, C, h, w) float32, in place of an image.
    """

    width: int
    height: int
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    latents: np.ndarray | None = None

    @property
    def has_image(self) -> bool:
        """Whether the loop starts from an image or from its latents."""
        return self.image is not None or self.latents is not None


def image_inputs(
    image: ImageInput | Sequence[ImageInput] | None,
    mask: ImageInput | None,
    height: int | None,
    width: int | None,
    resize_mode: str,
    *,
    default_size: tuple[int, int],
    space: LatentSpace,
    count: int,
) -> ImageInputs:
    """Open images and mask and bring them to the size that is generated.

    Args:
      image: one or several images, or latents (n, C, h, w) float32.
      height, width: pixels, multiples of the space's downscale; default the first image's size
        rounded down, or without an image `default_size`, (height, width).
      count: images to generate; a multiple of the number of input images.
    Raises: InvalidArgumentError: sizes or images that do not fit. FileNotFoundError: no such image.
    """
    if image is None and mask is not None:
        raise InvalidArgumentError("mask_image needs an image")
    unit = space.downscale
    if isinstance(image, np.ndarray) and image.ndim == 4 and image.shape[1] == space.channels:
        return _latent_inputs(image, mask, height, width, resize_mode, space=space, count=count)
    sources: list[Any] = list(image) if isinstance(image, (list, tuple)) else [image]
    opened = [load_image(source) for source in sources] if image is not None else []
    if image is not None and not opened:
        raise InvalidArgumentError("image: expected at least one image")
    if opened and count % len(opened):
        raise InvalidArgumentError(f"got {len(opened)} input images to generate {count} images")
    if opened:
        default_size = (
            max(opened[0].height // unit, 1) * unit,
            max(opened[0].width // unit, 1) * unit,
        )
    size = (
        _side("width", default_size[1] if width is None else width, unit),
        _side("height", default_size[0] if height is None else height, unit),
    )
    samples = [to_sample(resize(each, *size, resize_mode)) for each in opened]
    return ImageInputs(
        *size,
        image=np.concatenate(samples) if samples else None,
        mask=None if mask is None else load_mask(mask, *size, resize_mode),
    )


def _latent_inputs(
    latents: np.ndarray,
    mask: ImageInput | None,
    height: int | None,
    width: int | None,
    resize_mode: str,
    *,
    space: LatentSpace,
    count: int,
) -> ImageInputs:
    """Latents in place of images, which say the size."""
    checks.float_array("image", latents, (None, None, None, None))
    if not latents.size or count % len(latents):
        raise InvalidArgumentError(f"got {len(latents)} input latents to generate {count} images")
    own = tuple(side * space.downscale for side in latents.shape[2:])
    for name, side, wanted in zip(("height", "width"), own, (height, width), strict=True):
        if wanted not in (None, side):
            raise InvalidArgumentError(f"{name} must be {side}, that of the latents, got {wanted}")
    high, wide = own
    return ImageInputs(
        width=wide,
        height=high,
        mask=None if mask is None else load_mask(mask, wide, high, resize_mode),
        latents=latents,
    )


def repeated(name: str, texts: str | Sequence[str], count: int, repeats: int) -> list[str]:
    """The text of each image: one for all of `count` images, or one for each prompt.

    Raises: InvalidArgumentError: numbers that do not match.
    """
    found = checks.strings(name, texts)
    if isinstance(texts, str):
        return found * count
    if len(found) * repeats != count:
        raise InvalidArgumentError(f"got {count // repeats} prompts and {len(found)} in {name}")
    return [text for text in found for _ in range(repeats)]


def _side(name: str, value: int, unit: int) -> int:
    try:
        side = checks.integer(name, value, unit, MAX_SIDE)
    except ValueError:
        side = -1
    if side % unit:
        raise InvalidArgumentError(
            f"{name} must be a multiple of {unit} from {unit} to {MAX_SIDE}, got {shown(value)}"
        )
    return side


def prompts(
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Embeds | None,
    negative_prompt_embeds: np.ndarray | None,
    num_images_per_prompt: int,
) -> tuple[list[str], list[str]]:
    """Prompt and negative prompt of each image; "" where embeddings replace them.

    Raises: InvalidArgumentError: none or both of prompt and embeddings; numbers that do not match.
    """
    checks.integer("num_images_per_prompt", num_images_per_prompt, 1, 100_000)
    if (prompt is None) == (prompt_embeds is None):
        raise InvalidArgumentError("expected either a prompt or prompt_embeds")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise InvalidArgumentError("expected either a negative_prompt or negative_prompt_embeds")
    if prompt is not None:
        prompts = checks.strings("prompt", prompt)
    elif callable(prompt_embeds):
        prompts = [""]
    else:
        prompts = [""] * len(checks.float_array("prompt_embeds", prompt_embeds, (None, None, None)))
    if not prompts:
        raise InvalidArgumentError("expected at least one prompt")
    negatives = checks.strings(
        "negative_prompt", "" if negative_prompt is None else negative_prompt
    )
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise InvalidArgumentError(
            f"got {len(prompts)} prompts and {len(negatives)} negative prompts"
        )
    repeat = range(num_images_per_prompt)
    return [p for p in prompts for _ in repeat], [n for n in negatives for _ in repeat]
