"""The size and the input images of a pipeline call, checked and turned into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.images import masks
from sdexport.runtime.images.inpainting import InpaintImages, InpaintOptions, inpaint_images
from sdexport.runtime.images.loading import ImageSources, load_images
from sdexport.runtime.images.paste_back import PasteBack
from sdexport.runtime.images.pixels import to_sample
from sdexport.runtime.images.resizing import resize
from sdexport.runtime.models.latent_space import LatentSpace

MAX_SIDE = 16384
"""Largest height and width in pixels."""


@dataclass(frozen=True)
class ImageInputs:
    """The size to generate, in pixels, and the images to start from.

    image: (n, 3, height, width) float32 in -1..1. latents: (n, C, h, w) float32, in place of it.
    mask: (m, 1, height, width) float32, 0 or 1; n and m are equal, or one of them is 1. paste_back:
    how the results are pasted into the originals.
    """

    width: int
    height: int
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    latents: np.ndarray | None = None
    paste_back: tuple[PasteBack, ...] = ()

    @property
    def has_image(self) -> bool:
        """Whether the loop starts from an image or from its latents."""
        return self.image is not None or self.latents is not None


def image_inputs(
    image: ImageSources | None,
    mask: ImageSources | None,
    height: int | None,
    width: int | None,
    resize_mode: str,
    *,
    inpainting: InpaintOptions,
    default_size: tuple[int, int],
    space: LatentSpace,
    count: int,
) -> ImageInputs:
    """Open images and masks and bring them to the size that is generated.

    Args:
      image: one or several images, or latents (n, C, h, w) float32, or a list of such.
      height, width: pixels, multiples of the space's downscale; default the first image's size
        rounded down, or without an image, or to generate a part of it, `default_size`, (height,
        width).
      count: images to generate; a multiple of the number of input images.
    Raises: InvalidArgumentError: sizes or images that do not fit. FileNotFoundError: no such image.
    """
    if image is None and mask is not None:
        raise InvalidArgumentError("mask_image needs an image")
    unit = space.downscale
    opened_masks = [] if mask is None else masks.load_masks(mask)
    latents = _as_latents(image, space.channels)
    if latents is not None:
        if inpainting.pastes:
            raise InvalidArgumentError(
                "paste_back and padding_mask_crop need an image, got latents"
            )
        size = _size_of_latents(latents, height, width, unit)
        _check_counts(len(latents), len(opened_masks), count)
        fitting = [resize(inpainting.adjusted(each), *size, resize_mode) for each in opened_masks]
        return ImageInputs(*size, mask=_mask_array(fitting, unit), latents=latents)
    opened = [] if image is None else load_images(image)
    _check_counts(len(opened), len(opened_masks), count)
    whole = inpainting.padding_mask_crop is None
    if opened and whole:
        default_size = (
            max(opened[0].height // unit, 1) * unit,
            max(opened[0].width // unit, 1) * unit,
        )
    size = (
        _side("width", default_size[1] if width is None else width, unit),
        _side("height", default_size[0] if height is None else height, unit),
    )
    if opened_masks:
        ready = inpaint_images(opened, opened_masks, size, resize_mode, inpainting)
    else:
        ready = InpaintImages([resize(each, *size, resize_mode) for each in opened], [])
    samples = [to_sample(each) for each in ready.images]
    return ImageInputs(
        *size,
        image=np.concatenate(samples) if samples else None,
        mask=_mask_array(ready.masks, unit, whole=whole),
        paste_back=ready.paste_back,
    )


def _check_counts(images: int, mask_images: int, count: int) -> None:
    """Raises: InvalidArgumentError: images and masks that cannot be shared out to `count`."""
    if images and count % images:
        raise InvalidArgumentError(f"got {images} input images to generate {count} images")
    if mask_images > 1 < images != mask_images:
        raise InvalidArgumentError(
            f"mask_image: got {mask_images} masks for {images} images; "
            "give one for all of them, or one for each"
        )
    if mask_images and count % mask_images:
        raise InvalidArgumentError(
            f"mask_image: got {mask_images} masks to generate {count} images"
        )


def _mask_array(
    images: Sequence[Image.Image], unit: int, *, whole: bool = True
) -> np.ndarray | None:
    return masks.binary(images, unit, whole=whole) if images else None


def _as_latents(image: object, channels: int) -> np.ndarray | None:
    """Latents (n, channels, h, w) in place of images, or a list of such; None if they are none."""
    parts: list[Any] = list(image) if isinstance(image, (list, tuple)) and image else [image]
    if any(getattr(p, "ndim", 0) != 4 or p.shape[1] != channels for p in parts):
        return None
    found = [np.asarray(p) for p in parts]
    if any(p.dtype.kind != "f" or p.shape[2:] != found[0].shape[2:] for p in found):
        return None
    return found[0] if len(found) == 1 else np.concatenate(found)


def _size_of_latents(
    latents: np.ndarray, height: int | None, width: int | None, unit: int
) -> tuple[int, int]:
    """(width, height) in pixels of latents in place of images."""
    checks.float_array("image", latents, (None, None, None, None))
    if not latents.size:
        raise InvalidArgumentError(f"image: no latents, got {shown(latents)}")
    high, wide = (side * unit for side in latents.shape[2:])
    for side in (high, wide):
        if side > MAX_SIDE:
            raise InvalidArgumentError(
                f"image: latents of {wide}x{high} pixels; sides are at most {MAX_SIDE}"
            )
    for name, side, wanted in (("height", high, height), ("width", wide, width)):
        if wanted not in (None, side):
            raise InvalidArgumentError(f"{name} must be {side}, that of the latents, got {wanted}")
    return wide, high


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
