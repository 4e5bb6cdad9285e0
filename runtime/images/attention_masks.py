"""Masks of images for IP-Adapters, at the sizes of a UNet's levels.

Source: Keys 1981, IEEE TASSP 29(6), eq. 5 for a = -3/4: bicubic interpolation as PyTorch computes
it, without smoothing.
"""

from __future__ import annotations

import math

import numpy as np

_A = -0.75


def attention_mask(mask: np.ndarray, positions: int) -> np.ndarray:
    """A mask at each place of a level, row by row.

    As in diffusers, the level's height and width are those that have the proportions of the mask
    and about that many places; the rest is 0, or cut off.

    Args:
      mask: (height, width) float32.
      positions: places of the level.
    Returns: (positions,) float32.
    """
    height = max(int(math.sqrt(positions / (mask.shape[1] / len(mask)))), 1)
    height += positions % height != 0
    smaller = resized_bicubic(mask, height, max(positions // height, 1)).reshape(-1)[:positions]
    return np.pad(smaller, (0, positions - len(smaller)))


def resized_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image with other sides.

    Args:
      image: (h, w) float32.
    Returns: (height, width) float32.
    """
    rows = _weights(image.shape[0], height)
    columns = _weights(image.shape[1], width)
    result: np.ndarray = rows @ image.astype(np.float64) @ columns.T
    return result.astype(np.float32)


def _weights(size: int, wanted: int) -> np.ndarray:
    """How much of each element goes into each new one, (wanted, size)."""
    center = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
    first = np.floor(center).astype(int)
    weights = np.zeros((wanted, size))
    for offset in range(-1, 3):
        place = np.clip(first + offset, 0, size - 1)
        np.add.at(weights, (np.arange(wanted), place), _kernel(center - first - offset))
    return weights


def _kernel(distance: np.ndarray) -> np.ndarray:
    x = np.abs(distance)
    near = (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    far = _A * x**3 - 5 * _A * x**2 + 8 * _A * x - 4 * _A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
