"""Images brought to another size, as diffusers does it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown

RESIZE_MODES = ("stretch", "crop", "fill")
MAX_SCALED = 2**26
"""Pixels of a scaled image before it is cropped; beyond that only the part that is kept is scaled,
which changes rounding."""
_LANCZOS = Image.Resampling.LANCZOS


def resize(image: Image.Image, width: int, height: int, mode: str = "stretch") -> Image.Image:
    """Resize an image with a Lanczos filter; modes "1" and "P" with the nearest pixel, as Pillow.

    The pixels are those of diffusers' VaeImageProcessor.resize; its mode "default" is "stretch".

    Args:
      width, height: in pixels, 1 or more.
      mode: "stretch" changes the proportions; "crop" fills the size and cuts equal parts off two
        sides; "fill" fits the whole image in, centred, and repeats its edges around it.
    Returns: an image of that size; in RGB where "crop" or "fill" changed the proportions.
    Raises: InvalidArgumentError: unknown mode.
    """
    check_mode(mode)
    if image.size == (width, height):
        return image
    if mode == "stretch":
        return image.resize((width, height), _LANCZOS)
    inside = scaled_size(image.size, width, height, mode)
    if inside[0] * inside[1] > MAX_SCALED and mode == "crop":
        kept = visible(image.size, width, height)
        return image.resize((width, height), _LANCZOS, box=kept).convert("RGB")
    resized = image.resize(inside, _LANCZOS)
    canvas = Image.new("RGB", (width, height))
    left, top = width // 2 - inside[0] // 2, height // 2 - inside[1] // 2
    canvas.paste(resized, (left, top))
    if mode == "fill":
        _repeat_edges(canvas, resized, left, top)
    return canvas


def nearest(pixels: np.ndarray, width: int, height: int, mode: str = "stretch") -> np.ndarray:
    """Resize an array to the nearest pixels, as diffusers resizes arrays.

    Args:
      pixels: (H, W) or (H, W, channels).
      width, height, mode: see `resize`, which places an image in the same way.
    Raises: InvalidArgumentError: unknown mode.
    """
    check_mode(mode)
    size = pixels.shape[1], pixels.shape[0]
    scaled = (width, height) if mode == "stretch" else scaled_size(size, width, height, mode)
    columns, rows = (
        np.clip(np.arange(part) + whole // 2 - part // 2, 0, whole - 1) * side // whole
        for side, whole, part in zip(size, scaled, (width, height), strict=True)
    )
    found: np.ndarray = pixels[rows][:, columns]
    return found


def check_mode(mode: object) -> None:
    """Raises: InvalidArgumentError: no name of one of RESIZE_MODES."""
    if not isinstance(mode, str) or mode not in RESIZE_MODES:
        raise InvalidArgumentError(
            f"unknown resize_mode {shown(mode)}; choose one of {', '.join(RESIZE_MODES)}"
        )


def scaled_size(size: tuple[int, int], width: int, height: int, mode: str) -> tuple[int, int]:
    """The size of the whole image before "crop" cuts or "fill" repeats edges."""
    ratio, own_ratio = width / height, size[0] / size[1]
    if ratio > own_ratio if mode == "crop" else ratio < own_ratio:
        return width, max(1, size[1] * width // size[0])
    return max(1, size[0] * height // size[1]), height


def visible(size: tuple[int, int], width: int, height: int) -> tuple[float, float, float, float]:
    """The part of an image of `size` that "crop" keeps: left, top, right, bottom, in its pixels."""
    scaled = scaled_size(size, width, height, "crop")
    left, top = (
        whole // 2 - part // 2 for whole, part in zip(scaled, (width, height), strict=True)
    )
    x, y = size[0] / scaled[0], size[1] / scaled[1]
    return left * x, top * y, (left + width) * x, (top + height) * y


def _repeat_edges(canvas: Image.Image, inner: Image.Image, left: int, top: int) -> None:
    """Fill the canvas above and below, or left and right of `inner`, with its edges.

    The bands on both sides have the same width, so that one row or column may stay black, as in
    diffusers.
    """
    (width, height), (w, h) = canvas.size, inner.size
    if top > 0:
        canvas.paste(inner.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        canvas.paste(inner.resize((width, top), box=(0, h, width, h)), (0, top + h))
    elif left > 0:
        canvas.paste(inner.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        canvas.paste(inner.resize((left, height), box=(w, 0, w, height)), (left + w, 0))
