"""Matrices and weights of convolutions with fewer multiplications, in NumPy.

Winograd's minimal filtering computes TILE x TILE results of a 3x3 convolution with (TILE + 2)**2
multiplications instead of 9 * TILE**2: 36 instead of 144 for tiles of 4, 16 instead of 36 for tiles
of 2 (Lavin and Gray, arXiv 1509.09308). Pixels d, weights g: A^T ((G g G^T) * (B^T d B)) A.

A 3x3 convolution of an upsampled image, each pixel repeated in a square of 2x2, is four 2x2
convolutions of the small image, one for each place in the square: 4 multiplications instead of 9.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np

KERNEL = 3
POINTS = {
    (2, 3): (Fraction(0), Fraction(1), Fraction(-1)),
    (4, 3): (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
    (4, 2): (Fraction(0), Fraction(-1), Fraction(1, 2), Fraction(3, 2)),
}
"""By tile and taps: where the polynomials are evaluated, in addition to infinity. For tiles of 4,
rounding errors are half (three taps) and two thirds (two taps) of those with the usual points 1 and
2, as tests/engines/winograd/test_transforms.py measures."""


@cache
def transforms(tile: int, taps: int = KERNEL) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B^T (side, side), G (side, taps) and A^T (tile, side), float64, with side = tile + taps - 1.

    For `side` values d and `taps` weights g, A^T ((G g) * (B^T d)) are the `tile` results of a
    convolution along one axis.

    Args:
      tile, taps: results and weights along an axis, a key of POINTS.
    Source: the Toom-Cook construction, arXiv 1803.10986, section 3.
    """
    points, side = POINTS[tile, taps], tile + taps - 1
    others = [points[:i] + points[i + 1 :] for i in range(len(points))]
    bt = [_polynomial(rest, side) for rest in others] + [_polynomial(points, side)]
    scales = [_value(rest, point) for rest, point in zip(others, points, strict=True)]
    g = [[p**j / s for j in range(taps)] for p, s in zip(points, scales, strict=True)]
    g.append([Fraction(j == taps - 1) for j in range(taps)])
    at = [[p**j for p in points] + [Fraction(j == tile - 1)] for j in range(tile)]
    return _floats(bt), _floats(g), _floats(at)


def tile_matrices(tile: int, taps: int = KERNEL) -> tuple[np.ndarray, np.ndarray]:
    """The transforms of tiles along both axes at once, float32.

    Returns: B^T x B^T (side**2, side**2) on pixels, and A^T x A^T (tile**2, side**2) on products;
      tiles are flattened row by row.
    """
    bt, _, at = transforms(tile, taps)
    return np.kron(bt, bt).astype(np.float32), np.kron(at, at).astype(np.float32)


def kernel_matrix(tile: int, taps: int = KERNEL) -> np.ndarray:
    """The transform of a kernel, G x G (side**2, taps**2), float32; taps are flattened by row."""
    g = transforms(tile, taps)[1]
    return np.kron(g, g).astype(np.float32)


def transformed_weights(weights: np.ndarray, tile: int) -> np.ndarray:
    """G g G^T of (K, C, taps, taps) weights: (side**2, K, C) float32."""
    results, channels, taps = weights.shape[:3]
    flat = weights.reshape(results * channels, taps * taps).astype(np.float32, copy=False)
    return (kernel_matrix(tile, taps) @ flat.T).reshape(-1, results, channels)


def weights_of_halves(weights: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Weights of the four 2x2 convolutions that equal a 3x3 convolution of the upsampled image.

    Args:
      weights: (K, C, 3, 3).
    Returns: by (row, column) in each 2x2 square of the upsampled image, (K, C, 2, 2) float32. Those
      for an even row use the small image's rows i - 1 and i, those for an odd row i and i + 1.
    """
    return {
        (row, column): np.ascontiguousarray(
            _merged(_merged(weights, 2, row), 3, column), dtype=np.float32
        )
        for row in (0, 1)
        for column in (0, 1)
    }


def _merged(weights: np.ndarray, axis: int, odd: int) -> np.ndarray:
    """Two taps for three along an axis: those for the same pixel are added."""
    first, middle, last = np.split(weights.astype(np.float32, copy=False), KERNEL, axis)
    pair = (first + middle, last) if odd else (first, middle + last)
    return np.concatenate(pair, axis)


def _polynomial(roots: tuple[Fraction, ...], length: int) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest first, padded with zeros."""
    coefficients = [Fraction(1)]
    for root in roots:
        higher, lower = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
        coefficients = [a - root * b for a, b in zip(higher, lower, strict=True)]
    return coefficients + [Fraction(0)] * (length - len(coefficients))


def _value(roots: tuple[Fraction, ...], x: Fraction) -> Fraction:
    """The product of (x - root)."""
    return math.prod((x - root for root in roots), start=Fraction(1))


def _floats(rows: list[list[Fraction]]) -> np.ndarray:
    return np.array([[float(value) for value in row] for row in rows])
