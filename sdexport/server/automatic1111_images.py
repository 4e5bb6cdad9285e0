"""AUTOMATIC1111's img2img: images, masks and what is under a mask, as a pipeline takes them.

Source: StableDiffusionProcessingImg2Img and masking.py of AUTOMATIC1111's web UI 1.10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.images.masks import THRESHOLD, adjusted
from sdexport.runtime.images.resizing import resize
from sdexport.server.input_images import RequestImages, decoded_image

RESIZE_MODES = ("stretch", "crop", "fill")
"""What resize_mode 0, 1 and 2 are called here."""
FILL, ORIGINAL = 0, 1
_NO_CONTENT = {2: "latent noise", 3: "latent nothing"}
_RADII = (256, 64, 16, 16, 4, 4, 4, 4, 2, 2)
"""Of the blurs that colour what is under a mask, the coarsest first."""
_COARSE = 8
"""Radius to which larger ones are reduced."""


def image_arguments(fields: Mapping[str, Any], reader: RequestImages) -> dict[str, Any]:
    """The arguments of a call for img2img: `image`, `strength`, and those of a mask.

    Args:
      fields: of a request, checked. reader: decodes the images.
    Raises: InvalidArgumentError: no image, one that cannot be read, or a field that is not
      supported.
    """
    sources = fields["init_images"]
    if not sources:
        raise InvalidArgumentError("init_images: expected at least one image")
    mode = fields["resize_mode"]
    if not 0 <= mode < len(RESIZE_MODES):
        raise InvalidArgumentError(
            f"resize_mode must be 0, 1 or 2, got {mode}; latent upscale is missing"
        )
    images = [_on_white(decoded_image(each, "init_images", reader)) for each in sources]
    found: dict[str, Any] = {"strength": float(fields["denoising_strength"])}
    if not fields["mask"]:
        return found | {"image": _one_or_all(images), "resize_mode": RESIZE_MODES[mode]}
    mask = binary_mask(decoded_image(fields["mask"], "mask", reader), soft=_is_soft(fields))
    size = fields["width"], fields["height"]
    return found | _masked(fields, images, mask, size, RESIZE_MODES[mode])


def _masked(
    fields: Mapping[str, Any],
    images: Sequence[Image.Image],
    mask: Image.Image,
    size: tuple[int, int],
    mode: str,
) -> dict[str, Any]:
    """The arguments of inpainting: of the whole picture, or of what is masked only."""
    blur, invert = mask_blur(fields), bool(fields["inpainting_mask_invert"])
    found: dict[str, Any] = {"mask_invert": invert} if invert else {}
    if blur:
        found["mask_blur"] = blur
    if fields["inpaint_full_res"]:
        found["padding_mask_crop"] = fields["inpaint_full_res_padding"]
        if any(image.size != mask.size for image in images):
            mask = resize(mask, *images[0].size)
    else:
        found["paste_back"] = True  # into an image of the size that is generated
        images = [resize(image, *size, mode) for image in images]
        mask = resize(mask, *size, mode).convert("L")
    content = fields["inpainting_fill"]
    if content not in (FILL, ORIGINAL):
        what = f" ({_NO_CONTENT[content]})" if content in _NO_CONTENT else ""
        raise InvalidArgumentError(
            f"inpainting_fill: {shown(content)}{what} is not supported; use 0 (fill) "
            "or 1 (original)"
        )
    if content == FILL:
        covered = adjusted(mask, blur, invert=invert)
        images = [filled(image, covered) for image in images]
    return found | {"image": _one_or_all(images), "mask_image": mask}


def mask_blur(fields: Mapping[str, Any]) -> float:
    """The radius of the blur of a mask.

    Raises: InvalidArgumentError: it differs between both directions.
    """
    if fields["mask_blur"] is not None:
        return float(fields["mask_blur"])
    if fields["mask_blur_x"] != fields["mask_blur_y"]:
        raise InvalidArgumentError("mask_blur_x and mask_blur_y must be equal here")
    return float(fields["mask_blur_x"])


def binary_mask(image: Image.Image, *, soft: bool = False) -> Image.Image:
    """A mask in mode L as the web UI reads it: from alpha if anything is transparent, else grey.

    Args:
      soft: keep the levels instead of 0 and 255.
    """
    image = image.convert("RGBA") if image.has_transparency_data else image
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        levels = image.getchannel("A")
    else:
        levels = image.convert("L")
    return levels if soft else levels.point([255 * (level >= THRESHOLD) for level in range(256)])


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """An image with the colours around a mask spread over what the mask covers ("fill").

    The known pixels are blurred with ever smaller radii, and each result is laid over the ones
    before, so that a pixel has the colours that are nearest to it.

    Args:
      image: RGB. mask: of any size; half bright and brighter is covered.
    Returns: RGB; what is not covered has the same pixels.
    """
    if mask.size != image.size:
        mask = resize(mask.convert("L"), *image.size)
    covered = np.asarray(mask.convert("L")) >= THRESHOLD
    if not covered.any():
        return image
    alpha = Image.fromarray(np.where(covered, 0, 255).astype(np.uint8))
    known = image.convert("RGBA")
    known.putalpha(alpha)
    known = known.convert("RGBa")  # so that covered pixels have no weight in a blur
    canvas = Image.new("RGBA", image.size)
    for radius in _RADII:
        canvas.alpha_composite(_blurred(known, radius).convert("RGBA"))
    pixels = np.asarray(image).copy()
    pixels[covered] = np.asarray(canvas.convert("RGB"))[covered]
    return Image.fromarray(pixels)


def _blurred(image: Image.Image, radius: int) -> Image.Image:
    """An image with a Gaussian blur, for a large radius computed in a smaller size."""
    factor = max(radius // _COARSE, 1)
    small = image.reduce(factor) if factor > 1 else image
    blurred = small.filter(ImageFilter.GaussianBlur(radius / factor))
    return blurred.resize(image.size, Image.Resampling.BILINEAR) if factor > 1 else blurred


def _on_white(image: Image.Image) -> Image.Image:
    """In RGB; transparent pixels become white, as in the web UI."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _is_soft(fields: Mapping[str, Any]) -> bool:
    return not fields["mask_round"]


def _one_or_all(images: Sequence[Image.Image]) -> Image.Image | list[Image.Image]:
    return images[0] if len(images) == 1 else list(images)
