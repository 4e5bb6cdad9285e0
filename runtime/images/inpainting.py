"""What inpainting does with an image and a mask before the first step and after the last."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks
from sdexport.runtime.images.masks import NAME, adjusted
from sdexport.runtime.images.paste_back import PasteBack, crop_region, whole_image
from sdexport.runtime.images.resizing import check_mode, resize

MAX_BLUR, MAX_PADDING = 1024, 16384
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InpaintOptions:
    """The arguments of a pipeline call that need a mask.

    mask_blur: radius of a Gaussian in pixels of the mask. mask_invert: whether dark pixels are
    generated instead of bright ones. paste_back: whether the original is pasted back where the mask
    is dark. padding_mask_crop: pixels around what the mask covers; only that part is generated, at
    the full size, and pasted back. None for the whole image.
    """

    mask_blur: float = 0.0
    mask_invert: bool = False
    paste_back: bool = False
    padding_mask_crop: int | None = None

    @property
    def pastes(self) -> bool:
        """Whether the results are pasted into the originals."""
        return self.paste_back or self.padding_mask_crop is not None

    def adjusted(self, mask: Image.Image) -> Image.Image:
        """A mask, inverted and blurred."""
        return adjusted(mask, self.mask_blur, invert=self.mask_invert)

    def check(self, mask: object, resize_mode: str, output_type: str) -> None:
        """Raises: InvalidArgumentError: a wrong value, or one that would have no effect."""
        check_mode(resize_mode)
        checks.number("mask_blur", self.mask_blur, 0, MAX_BLUR)
        checks.boolean("mask_invert", self.mask_invert)
        checks.boolean("paste_back", self.paste_back)
        if self.padding_mask_crop is not None:
            checks.integer("padding_mask_crop", self.padding_mask_crop, 0, MAX_PADDING)
        used = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if used and mask is None:
            raise InvalidArgumentError(f"{used[0]} needs mask_image")
        if self.pastes and output_type == "latent":
            raise InvalidArgumentError(f"{used[-1]} needs pixels; leave output_type out")
        if self.padding_mask_crop is not None and resize_mode == "crop":
            raise InvalidArgumentError(
                "padding_mask_crop chooses the part itself; leave resize_mode out"
            )


@dataclass(frozen=True)
class InpaintImages:
    """Images and masks of the size that is generated, and how the results are pasted back.

    images, masks: one for all, or one for each. paste_back: one for each; empty if nothing is
    pasted.
    """

    images: Sequence[Image.Image]
    masks: Sequence[Image.Image]
    paste_back: tuple[PasteBack, ...] = ()


def inpaint_images(
    images: Sequence[Image.Image],
    masks: Sequence[Image.Image],
    size: tuple[int, int],
    resize_mode: str,
    options: InpaintOptions,
) -> InpaintImages:
    """Bring images and masks to the size that is generated.

    Args:
      images, masks: of any size; as many of both, or one of either.
      size: (width, height).
    Raises: InvalidArgumentError: an unknown resize_mode; a black mask that decides what is cropped.
    """
    for i in range(max(len(images), len(masks))):
        _warn_of_proportions(images[i % len(images)], masks[i % len(masks)])
    masks = [options.adjusted(mask) for mask in masks]
    if options.padding_mask_crop is not None:
        parts = [
            _cropped(image, mask, size, options.padding_mask_crop)
            for image, mask in _pairs(images, masks)
        ]
        cropped, cropped_masks, paste_back = zip(*parts, strict=True)
        return InpaintImages(cropped, cropped_masks, paste_back)
    pasted: list[PasteBack] = []
    if options.paste_back:
        pasted = [
            whole_image(image, mask, size, resize_mode) for image, mask in _pairs(images, masks)
        ]
    return InpaintImages(
        [resize(image, *size, resize_mode) for image in images],
        [resize(mask, *size, resize_mode) for mask in masks],
        tuple(pasted),
    )


def _pairs(
    images: Sequence[Image.Image], masks: Sequence[Image.Image]
) -> list[tuple[Image.Image, Image.Image]]:
    """Each image with its mask, resized to the image's size."""
    count = max(len(images), len(masks))
    pairs = []
    for i in range(count):
        image, mask = images[i % len(images)], masks[i % len(masks)]
        if mask.size != image.size:
            mask = resize(mask.convert("L"), *image.size)
        pairs.append((image, mask))
    return pairs


def _cropped(
    image: Image.Image, mask: Image.Image, size: tuple[int, int], padding: int
) -> tuple[Image.Image, Image.Image, PasteBack]:
    box = crop_region(mask, *size, padding)
    parts = [resize(each.crop(box), *size, "fill") for each in (image, mask)]
    return parts[0], parts[1], PasteBack(image, mask, box)


def _warn_of_proportions(image: Image.Image, mask: Image.Image) -> None:
    stretched = mask.height * image.width / mask.width
    if abs(stretched - image.height) > max(1, 0.02 * image.height):
        _log.warning(
            "%s: %dx%d has other proportions than the image, %dx%d; it may not cover what you mean",
            *(NAME, *mask.size, *image.size),
        )


def pasted(decoded: np.ndarray, paste_back: Sequence[PasteBack]) -> np.ndarray | list[np.ndarray]:
    """The generated images with the originals pasted back.

    Args:
      decoded: (B, h, w, 3), uint8, or float32 in 0..1, of which the result has 256 levels.
      paste_back: one for each of n images, where n divides B; or none.
    Returns: (B, H, W, 3) of the same dtype; a list of arrays if the originals differ in size.
    """
    if not paste_back:
        return decoded
    is_float, repeats = decoded.dtype != np.uint8, len(decoded) // len(paste_back)
    images = []
    for i, pixels in enumerate(decoded):
        levels = np.rint(pixels * 255).astype(np.uint8) if is_float else pixels
        image = paste_back[i // repeats](levels)
        images.append(image / np.float32(255) if is_float else image)
    same = len({image.shape for image in images}) == 1
    return np.stack(images) if same else images
