"""Image files that carry the settings of their image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.files import atomic_write
from sdexport.runtime.images.parameters import Parameters

KEY = "parameters"
"""Keyword of the text in `image.info` and in a PNG file, as AUTOMATIC1111 writes it."""


def to_image(pixels: np.ndarray, parameters: Parameters | None = None) -> Image.Image:
    """Turn pixels into a Pillow image.

    Args:
      pixels: (H, W, 3) uint8.
      parameters: written as text to `image.info["parameters"]`.
    """
    image = Image.fromarray(pixels)
    if parameters is not None:
        image.info[KEY] = str(parameters)
    return image


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image to a PNG file, together with the settings that it was generated with.

    The settings are the text `image.info["parameters"]`, if there is one. An existing file is
    replaced; the write is atomic.

    Args:
      path: a file name that ends in .png; the folder exists.
    Raises:
      InvalidArgumentError: the name does not end in .png.
      OSError: the folder is missing or cannot be written.
    Example:
        >>> from PIL import Image
        >>> from sdexport import save_image
        >>> image = Image.new("RGB", (64, 64), "red")
        >>> image.info["parameters"] = "a red square"
        >>> save_image(image, "square.png")
        >>> Image.open("square.png").text
        {'parameters': 'a red square'}
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InvalidArgumentError(
            f"{path}: images are saved as PNG files only; use a name that ends in .png"
        )
    text = PngImagePlugin.PngInfo()
    if KEY in image.info:
        text.add_text(KEY, image.info[KEY])
    with atomic_write(path) as file:
        image.save(file, format="PNG", pnginfo=text)
