"""Pictures: from the VAE's numbers to PNG files that carry their parameters."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from runtime.version import VERSION


@dataclass(frozen=True)
class Parameters:
    """What a picture was made from."""

    prompt: str
    negative_prompt: str
    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    seed: int | None
    width: int
    height: int
    model: str

    def __str__(self) -> str:
        """The `parameters` text that Stable Diffusion user interfaces write into PNG files."""
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
            "Version": f"sdexport {VERSION}",
        }
        lines.append(", ".join(f"{k}: {v}" for k, v in settings.items() if v is not None))
        return "\n".join(lines)


def to_uint8(sample: np.ndarray) -> np.ndarray:
    """Decoded samples as pixels.

    Args:
      sample: (B, 3, H, W) float32, nominally -1..1; values beyond are clipped.
    Returns: (B, H, W, 3) uint8.
    """
    unit = np.clip(sample / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    return np.rint(unit * 255).astype(np.uint8)


def to_image(pixels: np.ndarray, parameters: Parameters | None = None) -> Image.Image:
    """A Pillow image of (H, W, 3) uint8; the parameters go into `image.info["parameters"]`."""
    image = Image.fromarray(pixels)
    if parameters is not None:
        image.info["parameters"] = str(parameters)
    return image


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a PNG with the image's `parameters` text, under a temporary name first.

    Raises: OSError: the folder is missing or cannot be written.
    """
    path = Path(path)
    text = PngImagePlugin.PngInfo()
    if "parameters" in image.info:
        text.add_text("parameters", image.info["parameters"])
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(beside, format="PNG", pnginfo=text)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
