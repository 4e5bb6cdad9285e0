"""The digest of an input image, by which it is recognised later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sdexport.runtime.images.parameters import InputImage, digest


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
    if isinstance(source, (str, Path)):
        with Image.open(source) as opened:
            return InputImage(_digest(opened), Path(source).name)
    return InputImage(_digest(source) if isinstance(source, Image.Image) else digest(source))


def _digest(image: Image.Image) -> str:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # the palette counts, not its order
    return digest(np.asarray(image))
