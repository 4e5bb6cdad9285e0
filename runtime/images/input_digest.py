"""The digest of an input image, by which it is recognised later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdexport.runtime.images.loading import array_file, open_image
from sdexport.runtime.images.pixel_levels import ArrayLike, to_array
from sdexport.runtime.images.recorded_values import InputImage, digest


def identify(source: Any) -> tuple[InputImage, ...] | None:
    """What identifies an image, or each of a list of images; None for None.

    The digest is of the pixels: a file has the same as the array or Pillow image that is read from
    it, and its format and metadata do not matter.

    Args:
      source: see sdexport.runtime.images.loading.ImageInput.
    Raises: OSError: a file cannot be read.
    """
    if source is None:
        return None
    sources = source if isinstance(source, (list, tuple)) else [source]
    return tuple(_identify(each) for each in sources)


def _identify(source: Any) -> InputImage:
    if (array := array_file(source)) is not None:
        return InputImage(digest(array), _base_name(source))
    if isinstance(source, (str, Path, Image.Image)):
        image, _ = open_image(source, "image")
        # Pillow names the file that it opened
        name = getattr(source, "filename", "") if isinstance(source, Image.Image) else source
        return InputImage(_digest(image), _base_name(name))
    if isinstance(source, ArrayLike):
        source = to_array(source, "image")
    return InputImage(digest(source))


def _base_name(name: object) -> str | None:
    return Path(name).name or None if isinstance(name, (str, Path)) else None


def _digest(image: Image.Image) -> str:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # the palette counts, not its order
    return digest(np.asarray(image))
