"""Inpainting masks: loaded from files, Pillow images or arrays, inverted and blurred."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import one_line
from sdexport.runtime.images.loading import (
    ImageInput,
    ImageSources,
    checked_source,
    listed,
    open_image,
    with_alpha,
)
from sdexport.runtime.images.pixel_levels import split_batch, to_array, to_levels

NAME = "mask_image"
"""What an error message calls the argument."""
THRESHOLD = 128
"""Grey value from which on a pixel is generated."""
_KEPT_MODES = ("1", "P", "RGB", "RGBX", "CMYK")
"""Modes in which diffusers resizes and, apart from the first two, blurs a mask."""
_log = logging.getLogger(__name__)


def load_masks(source: ImageSources, name: str = NAME) -> list[Image.Image]:
    """Load one mask or several: bright pixels are generated, dark ones are kept.

    Brightness is multiplied by alpha, so that transparent pixels are kept. If no value is above 1,
    0 and 1 are read as black and white. Files and Pillow images are rotated as their EXIF
    orientation says, and arrays are read as `to_levels` describes; they may be (B, H, W).

    Args:
      name: of the argument, for messages.
    Returns: opaque images, where possible in their own mode, which decides how Pillow resizes and
      blurs them.
    Raises:
      FileNotFoundError: there is no such file.
      InvalidArgumentError: a file that cannot be read as an image; an array of another shape or
        with other values; an empty list.
    """
    return [mask for each in listed(source, name) for mask in _load(each, name)]


def _load(source: ImageInput, name: str) -> list[Image.Image]:
    if isinstance(source, Image.Image | str | Path):
        image, called = open_image(source, name)
        return [_normalized(image, called)]
    pixels = to_array(checked_source(source, name), name)
    split_batch(pixels, name, grey=True)  # says what is wrong with an empty array
    parts = split_batch(to_levels(pixels, name, zero_one=True), name, grey=True)
    return [_normalized(Image.fromarray(np.ascontiguousarray(each)), name) for each in parts]


def _normalized(image: Image.Image, called: str) -> Image.Image:
    is_opaque_grey = image.mode == "L" and not image.has_transparency_data
    if is_opaque_grey or image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(to_levels(np.asarray(image), called, zero_one=True))
    try:
        image = with_alpha(image)
        if image.mode == "RGBA":
            black = Image.new("RGBA", image.size, "black")
            image = Image.alpha_composite(black, image)
        rgb = image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # modes without a conversion
        raise InvalidArgumentError(
            f"{called} cannot be read as a mask: {one_line(error)}"
        ) from error
    if max(high for _, high in rgb.getextrema()) == 1:  # type: ignore[misc]
        return Image.fromarray(np.asarray(rgb) * np.uint8(255))
    return image if image.mode in _KEPT_MODES else rgb


def adjusted(mask: Image.Image, blur: float, *, invert: bool) -> Image.Image:
    """Invert a mask, then blur it with a Gaussian.

    Args:
      blur: the radius (standard deviation) in pixels, as in diffusers' VaeImageProcessor.blur.
    """
    if invert or (blur and mask.mode in ("1", "P")):  # which Pillow cannot blur
        mask = mask.convert("L")
    if invert:
        mask = ImageOps.invert(mask)
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def binary(masks: Sequence[Image.Image], unit: int, *, whole: bool = True) -> np.ndarray:
    """Masks as an array, with a warning of those that let nothing or everything be generated.

    Args:
      masks: of one size.
      unit: pixels to a side of a latent cell; the pixel at its top left decides.
      whole: whether the masks are of whole images; a part may well be masked everywhere.
    Returns: (m, 1, H, W) float32: 1 where the grey value is 128 or more, else 0.
    """
    grey = np.stack([np.asarray(mask.convert("L")) for mask in masks])
    found = (grey >= THRESHOLD).astype(np.float32)
    for i, cells in enumerate(found[:, ::unit, ::unit]):
        which = f"{NAME} {i + 1} of {len(masks)}" if len(masks) > 1 else NAME
        brightest = grey[i].max()
        if brightest < THRESHOLD:
            _log.warning(
                "%s: nothing will be generated; its brightest pixel is %d of 255, and %d or more "
                "is generated",
                *(which, brightest, THRESHOLD),
            )
        elif not cells.any():
            _log.warning("%s: nothing will be generated; its bright areas are too small", which)
        elif whole and cells.all():
            _log.warning("%s: everything will be generated; it is bright everywhere", which)
    return found[:, None]
