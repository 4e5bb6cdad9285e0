"""The settings of an image, and image files that carry them.

Everything about image metadata is here: which settings there are, how they read as text, and where
in a file the text goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.files import atomic_write
from sdexport.runtime.version import __version__

KEY = "parameters"
"""Keyword of the text in `image.info` and in a PNG file, as AUTOMATIC1111 writes it."""


@dataclass(frozen=True)
class Parameters:
    """The settings that an image was generated with.

    Attributes:
      seed: None if the image depends on no seed, because the latents were an argument.
      width, height: in pixels.
      model: name of the package's folder.
      strength: 0..1; None without an input image.
      batch_size, batch_index: size of the batch that shares one seed, and the image's place in it,
        from 0. Such an image is reproduced only as the same one of as many.
    """

    prompt: str
    negative_prompt: str
    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    seed: int | None
    width: int
    height: int
    model: str
    eta: float = 0.0
    strength: float | None = None
    batch_size: int = 1
    batch_index: int = 0

    def __str__(self) -> str:
        """The text that AUTOMATIC1111 and other user interfaces write into PNG files."""
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        settings = {
            "Steps": self.num_inference_steps,
            "Sampler": self.scheduler.upper(),
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": self.model,
            "Denoising strength": self.strength,
            "Eta": self.eta or None,
            "Batch size": self.batch_size if self.batch_size > 1 else None,
            "Batch pos": self.batch_index if self.batch_size > 1 else None,
            "Version": f"sdexport {__version__}",
        }
        lines.append(", ".join(f"{k}: {v}" for k, v in settings.items() if v is not None))
        return "\n".join(lines)


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
