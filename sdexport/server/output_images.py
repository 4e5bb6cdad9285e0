"""Images in responses: files with their settings, and small previews."""

from __future__ import annotations

import base64
import io

from PIL import Image

from sdexport.runtime.images.metadata import save_image

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
PREVIEW_SIDE = 256
"""Pixels of the longer side of a preview."""


def encoded_image(
    image: Image.Image,
    format: str = "png",  # noqa: A002
    quality: int | None = None,
    *,
    lossless: bool = False,
) -> bytes:
    """The content of an image file with the image's settings, as `save_image` writes it.

    Raises: InvalidArgumentError: another format, or an option that it does not have.
    """
    file = io.BytesIO()
    save_image(image, file, format=format, quality=quality, lossless=lossless)
    return file.getvalue()


def as_base64(content: bytes) -> str:
    """The content of a file as base64."""
    return base64.b64encode(content).decode("ascii")


def preview_url(preview: Image.Image) -> str:
    """A preview as a data URL, enlarged smoothly if it is small."""
    longer = max(preview.size)
    if longer != PREVIEW_SIDE:
        size = [max(round(side * PREVIEW_SIDE / longer), 1) for side in preview.size]
        preview = preview.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    preview.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + as_base64(file.getvalue())
