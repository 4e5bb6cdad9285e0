"""Between 8-bit pixels and the samples that the VAE takes and returns."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_sample(image: Image.Image) -> np.ndarray:
    """Turn an RGB image into a sample for the VAE's encoder.

    Returns: (1, 3, H, W) float32 in -1..1.
    """
    unit = np.asarray(image, np.float32) / 255
    return np.ascontiguousarray(unit.transpose(2, 0, 1)[None] * 2 - 1)


def to_uint8(sample: np.ndarray) -> np.ndarray:
    """Turn samples from the VAE's decoder into pixels.

    Args:
      sample: (B, C, H, W) float32, nominally -1..1; values outside are clipped.
    Returns: (B, H, W, C) uint8.
    """
    pixels = np.empty(_channels_last(sample), np.uint8)
    for i, c in np.ndindex(sample.shape[:2]):  # one plane at a time, to save memory
        plane = _unit(sample[i, c])
        plane *= 255
        pixels[i, :, :, c] = np.rint(plane, out=plane)
    return pixels


def to_unit(sample: np.ndarray) -> np.ndarray:
    """As `to_uint8`, not rounded: (B, H, W, C) float32 in 0..1."""
    pixels = np.empty(_channels_last(sample), np.float32)
    for i, c in np.ndindex(sample.shape[:2]):
        pixels[i, :, :, c] = _unit(sample[i, c])
    return pixels


def _unit(plane: np.ndarray) -> np.ndarray:
    """From -1..1 to 0..1, clipped, in a new array."""
    plane = plane / 2
    plane += 0.5
    return np.clip(plane, 0, 1, out=plane)


def _channels_last(sample: np.ndarray) -> tuple[int, int, int, int]:
    count, channels, height, width = sample.shape
    return count, height, width, channels
