"""Random pictures of every kind that edge detectors meet: noise, gradients, shapes, photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("noise", "soft noise", "gradient", "shapes", "photograph", "flat", "grey")


def random_picture(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8."""
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "soft noise":
        return rng.normal(128, 12, (height, width, 3)).clip(0, 255).astype(np.uint8)
    if kind == "gradient":
        down, across = np.mgrid[0:height, 0:width]
        waves = [np.sin(down / rng.uniform(1, 9) + across / rng.uniform(-9, 9)) for _ in range(3)]
        return (127.5 + 127 * np.stack(waves, -1)).astype(np.uint8)
    if kind == "shapes":
        return _shapes(rng, height, width)
    if kind == "photograph":
        return _photograph(rng, height, width)
    if kind == "flat":
        return np.full((height, width, 3), rng.integers(0, 256), np.uint8)
    grey = random_picture(rng, "photograph", height, width)[..., :1]
    return np.repeat(grey, 3, axis=2)


def _shapes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, height), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        corners = rng.integers(-4, max(height, width) + 4, (2, 2))
        box = [*corners.min(0).tolist(), *corners.max(0).tolist()]
        colour = tuple(rng.integers(0, 256, 3).tolist())
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
        draw.line(corners.ravel().tolist(), fill=colour[::-1], width=int(rng.integers(1, 4)))
    return np.asarray(image)


def _photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise whose spectrum falls as that of photographs, with correlated colours."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    fall = 1 / np.maximum(np.hypot(down, across), 1 / max(height, width))
    planes = rng.normal(size=(height, width, 3)) + rng.normal(size=(height, width, 1))
    spectrum = np.fft.rfft2(planes, axes=(0, 1)) * fall[..., None]
    smooth = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
    smooth = (smooth - smooth.mean()) / (smooth.std() or 1)
    return (128 + 60 * smooth).clip(0, 255).astype(np.uint8)
