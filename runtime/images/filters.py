"""Filters of pixels in NumPy: Gaussian blur, thin lines, soft edges."""

from __future__ import annotations

import math

import numpy as np

_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""(down, across): to a pixel's neighbours on one side, in the four directions of a line."""
_STEP = 1 / math.sqrt(2 * math.pi)
"""Steepest slope of a step of height 1, blurred by a Gaussian, times its standard deviation."""


def gaussian_blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Blur the first two axes; pixels outside are mirrored, as in OpenCV.

    Args:
      values: (H, W) or (H, W, C) float32.
      sigma: standard deviation in pixels, above 0.
    Returns: float32 of the same shape.
    """
    radius = (round(8 * sigma + 1) | 1) // 2
    offsets = np.arange(radius + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis in (0, 1):
        values = _weighted(values, weights.astype(np.float32), axis)
    return values


def _weighted(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Symmetric weighted sums along an axis; the first weight is that of the pixel itself."""
    radius, size = len(weights) - 1, values.shape[axis]
    margins = [(radius, radius) if each == axis else (0, 0) for each in range(values.ndim)]
    padded = np.moveaxis(np.pad(values, margins, mode="reflect"), axis, 0)
    total = padded[radius : radius + size] * weights[0]
    pair = np.empty_like(total)
    for offset in range(1, radius + 1):
        before, after = radius - offset, radius + offset
        np.add(padded[before : before + size], padded[after : after + size], out=pair)
        pair *= weights[offset]
        total += pair
    return np.moveaxis(total, 0, axis)


def soft_edge_strength(levels: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """How steep an image is, averaged over scales, each relative to the slope of a sharp step.

    A step between two levels gives their difference at each scale, so that thick and thin outlines
    count alike. Of several channels the steepest counts.

    Args:
      levels: (H, W, C) uint8.
      scales: standard deviations of Gaussians in pixels.
    Returns: (H, W) float32, 0..255.
    Source: Lindeberg 1998, "Edge Detection and Ridge Detection with Automatic Scale Selection",
      section 4: gradients normalised by scale.
    """
    values = levels.astype(np.float32)
    total = np.zeros(levels.shape[:2], np.float32)
    for sigma in scales:
        blurred = np.pad(gaussian_blur(values, sigma), ((1, 1), (1, 1), (0, 0)), mode="edge")
        across = blurred[1:-1, 2:] - blurred[1:-1, :-2]
        down = blurred[2:, 1:-1] - blurred[:-2, 1:-1]
        slope = np.sqrt(across**2 + down**2).max(axis=2) / 2
        total += slope * np.float32(sigma / _STEP)
    total /= len(scales)
    return np.minimum(total, 255, out=total)


def ridges(values: np.ndarray) -> np.ndarray:
    """Where a pixel is at least as high as both neighbours in one of four directions.

    Args:
      values: (H, W) float32.
    Returns: (H, W) bool.
    """
    height, width = values.shape
    padded = np.pad(values, 1, constant_values=-np.inf)
    found = np.zeros((height, width), bool)
    for down, across in _DIRECTIONS:
        after = padded[1 + down : 1 + down + height, 1 + across : 1 + across + width]
        before = padded[1 - down : 1 - down + height, 1 - across : 1 - across + width]
        found |= (values >= after) & (values >= before)
    return found
