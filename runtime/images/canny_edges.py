"""Canny's edge detector in NumPy, with the results of OpenCV's Canny.

Source: Canny 1986, "A Computational Approach to Edge Detection"; the details are those of OpenCV
with an aperture of 3, so that both give the same pixels.
"""

from __future__ import annotations

import math

import numpy as np

_SHIFT = 15
_TAN_22 = int(math.tan(math.pi / 8) * 2**_SHIFT + 0.5)
"""tan(22.5 degrees) in fixed point; tan(67.5 degrees) is 2 more."""
_L2_LARGEST = 32767.0
"""Largest threshold that is squared."""


def canny_edges(
    levels: np.ndarray, low: float, high: float, *, l2_gradient: bool = False
) -> np.ndarray:
    """Find edges.

    Args:
      levels: (H, W) or (H, W, C) uint8; of several channels, the one with the steepest gradient
        counts for each pixel.
      low, high: edges begin where the gradient is above `high` and go on while it is above `low`;
        in either order.
      l2_gradient: measure the gradient by its Euclidean norm, not by the sum of both parts.
    Returns: (H, W) bool.
    """
    low, high = _thresholds(low, high, l2_gradient=l2_gradient)
    planes = levels[..., None] if levels.ndim == 2 else levels
    across, down, magnitude = _steepest(planes, l2_gradient=l2_gradient)
    places, is_strong = _thin(across, down, magnitude, low, high)
    kept = places[_connected(places, is_strong, magnitude.shape)]
    edges = np.zeros(magnitude.size, bool)
    edges[kept] = True
    return edges.reshape(magnitude.shape)[1:-1, 1:-1]


def _thresholds(low: float, high: float, *, l2_gradient: bool) -> tuple[int, int]:
    """Both as integers, in their order, in units of the magnitude."""
    pair = sorted((low, high))
    if l2_gradient:
        pair = [min(each, _L2_LARGEST) ** 2 for each in pair]
    return math.floor(pair[0]), math.floor(pair[1])


def _steepest(
    planes: np.ndarray, *, l2_gradient: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradient of each pixel, and its magnitude with a border of zeros.

    Args:
      planes: (H, W, C) uint8.
    Returns: (H, W) int16 twice, (H + 2, W + 2) int32.
    """
    height, width, channels = planes.shape
    best = np.zeros((height + 2, width + 2), np.int32)
    inner = best[1:-1, 1:-1]
    across, down = _gradient(planes[..., 0])
    inner[:] = _magnitude(across, down, l2_gradient=l2_gradient)
    for channel in range(1, channels):
        other_across, other_down = _gradient(planes[..., channel])
        magnitude = _magnitude(other_across, other_down, l2_gradient=l2_gradient)
        steeper = magnitude > inner
        np.copyto(across, other_across, where=steeper)
        np.copyto(down, other_down, where=steeper)
        np.copyto(inner, magnitude, where=steeper)
    return across, down, best


def _gradient(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel's derivatives to the right and downwards; the edges of the plane are repeated.

    Args:
      plane: (H, W) uint8.
    Returns: (H, W) int16 each.
    """
    padded = np.pad(plane, 1, mode="edge").astype(np.int16)
    middle = 2 * padded[1:-1]
    middle += padded[:-2]
    middle += padded[2:]
    across = middle[:, 2:] - middle[:, :-2]
    steps = padded[2:] - padded[:-2]
    down = 2 * steps[:, 1:-1]
    down += steps[:, :-2]
    down += steps[:, 2:]
    return across, down


def _magnitude(across: np.ndarray, down: np.ndarray, *, l2_gradient: bool) -> np.ndarray:
    if not l2_gradient:
        total: np.ndarray = np.abs(across) + np.abs(down)
        return total
    wide = across.astype(np.int32)
    wide *= wide
    other = down.astype(np.int32)
    other *= other
    wide += other
    return wide


def _thin(
    across: np.ndarray, down: np.ndarray, magnitude: np.ndarray, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels above `low` that are the steepest along their gradient.

    Returns: their places in the flattened, bordered magnitude, and which are above `high`.
    """
    stride = magnitude.shape[1]
    rows, columns = np.nonzero(magnitude[1:-1, 1:-1] > low)
    flat = magnitude.ravel()
    places = (rows + 1) * stride + columns + 1
    x = across[rows, columns].astype(np.int32)
    y = down[rows, columns].astype(np.int32)
    opposite = (x ^ y) < 0
    x, y = np.abs(x), np.abs(y) << _SHIFT
    tan_22 = x * _TAN_22
    is_across, is_down = y < tan_22, y > tan_22 + (x << (_SHIFT + 1))
    diagonal = ~(is_across | is_down)
    offset = np.where(is_across, 1, stride)
    offset[diagonal] += np.where(opposite[diagonal], -1, 1)
    own = flat[places]
    after = flat[places + offset]
    kept = (own > flat[places - offset]) & ((own > after) | ((own == after) & ~diagonal))
    return places[kept], own[kept] > high


def _connected(places: np.ndarray, is_strong: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which pixels touch a strong one, directly or through others; diagonals count.

    Args:
      places: in a flattened array of `shape`, none of them on its border, ascending.
    """
    stride = shape[1]
    number = np.full(shape[0] * stride, -1, np.int32)
    number[places] = np.arange(len(places), dtype=np.int32)
    pairs = []
    for offset in (1, stride - 1, stride, stride + 1):
        other = number[places + offset]
        near = other >= 0
        pairs.append(np.stack([np.flatnonzero(near).astype(np.int32), other[near]]))
    root = _roots(len(places), np.concatenate(pairs, axis=1))
    reached = np.zeros(len(places), bool)
    reached[root[is_strong]] = True
    found: np.ndarray = reached[root]
    return found


def _roots(count: int, pairs: np.ndarray) -> np.ndarray:
    """The smallest number that each of `count` is connected with.

    Each round hooks roots onto the smallest neighbouring root, and shortens the paths to them.

    Args:
      pairs: (2, n) int32 of connected numbers.
    """
    root = np.arange(count, dtype=np.int32)
    while True:
        pairs = root[pairs]
        pairs = pairs[:, pairs[0] != pairs[1]]
        if not pairs.size:
            return root
        np.minimum.at(root, pairs.max(axis=0), pairs.min(axis=0))
        while True:
            further = root[root]
            if np.array_equal(further, root):
                break
            root = further
