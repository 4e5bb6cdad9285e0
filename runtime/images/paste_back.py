"""Inpainting a part of an image, and the original pasted back around what was generated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.images.resizing import resize, visible

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are exclusive."""


@dataclass(frozen=True)
class PasteBack:
    """Pastes an original image over a generated one, except where the mask is bright.

    original: RGB. mask: of the same size; grey pixels mix both. box: the part of the original that
    was generated. mode: how the generated image is resized to it.

    The pixels are those of diffusers' VaeImageProcessor.apply_overlay.
    """

    original: Image.Image
    mask: Image.Image
    box: Box
    mode: str = "crop"

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Paste.

        Args:
          pixels: (h, w, 3) uint8, the generated image.
        Returns: (H, W, 3) uint8, of the original's size.
        """
        x, y, right, bottom = self.box
        generated = resize(Image.fromarray(pixels), right - x, bottom - y, self.mode)
        canvas = Image.new("RGBA", self.original.size)
        canvas.paste(generated, (x, y))
        canvas = canvas.convert("RGB").convert("RGBA")
        kept = Image.new("RGBa", self.original.size)
        colors = self.original.convert("RGBA").convert("RGBa")
        kept.paste(colors, mask=ImageOps.invert(self.mask.convert("L")))
        canvas.alpha_composite(kept.convert("RGBA"))
        return np.asarray(canvas.convert("RGB"))


def whole_image(
    original: Image.Image, mask: Image.Image, size: tuple[int, int], mode: str
) -> PasteBack:
    """Paste back around an image that was generated from the whole original.

    Args:
      mask: of the original's size.
      size: (width, height) that is generated. mode: how the original was resized to it.
    """
    full = (0, 0, *original.size)
    if mode != "crop":  # cropping undoes "fill"
        return PasteBack(original, mask, full, "crop" if mode == "fill" else mode)
    box = _visible(original.size, *size)
    inside = Image.new("L", original.size)
    inside.paste(mask.convert("L").crop(box), box)
    return PasteBack(original, inside, box, "stretch")


def _visible(size: tuple[int, int], width: int, height: int) -> Box:
    """The part of an image of `size` that "crop" keeps, in whole pixels."""
    left, top, right, bottom = map(round, visible(size, width, height))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def crop_region(mask: Image.Image, width: int, height: int, padding: int) -> Box:
    """The part of an image to generate: what the mask covers, with padding, in proportion.

    The numbers are those of diffusers' VaeImageProcessor.get_crop_region.

    Args:
      mask: every pixel that is not black counts.
      width, height: in pixels, that are generated; the part gets their proportions where the image
        has room for it.
      padding: pixels around what the mask covers.
    Raises: InvalidArgumentError: the mask is black.
    """
    covered = mask.convert("L").getbbox()
    if covered is None:
        raise InvalidArgumentError(
            "mask_image: it is black, so that padding_mask_crop has no area to crop to"
        )
    left, top = (max(edge - padding, 0) for edge in covered[:2])
    right, bottom = (min(e + padding, own) for e, own in zip(covered[2:], mask.size, strict=True))
    ratio = width / height
    if (right - left) / (bottom - top) > ratio:
        more = int((right - left) / ratio - (bottom - top))
        top, bottom = _widened(top, bottom, more, mask.height)
    else:
        more = int((bottom - top) * ratio - (right - left))
        left, right = _widened(left, right, more, mask.width)
    return left, top, right, bottom


def _widened(start: int, stop: int, more: int, limit: int) -> tuple[int, int]:
    """A span with `more` pixels, moved into 0..limit, and cut off if it is longer than that."""
    start -= more // 2
    stop += more - more // 2
    beyond = max(stop - limit, 0)
    start, stop = start - beyond, stop - beyond
    below = max(-start, 0)
    return start + below, min(stop + below, limit)
