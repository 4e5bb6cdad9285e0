"""Matrices and weights of convolutions with fewer multiplications, compared with direct sums."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from sdexport.engines.winograd.transforms import (
    POINTS,
    tile_matrices,
    transformed_weights,
    transforms,
    weights_of_halves,
)
from tests.tolerances import CONVOLUTION_FLOAT64_REL, WINOGRAD_REL, assert_close

RNG = np.random.default_rng(0)


def correlated(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C, H, W) pixels and (K, C, n, n) weights: (K, H - n + 1, W - n + 1), in float64."""
    window = weights.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(pixels.astype(float), window, (1, 2))
    return np.einsum("chwij,kcij->khw", windows, weights.astype(float))


@pytest.mark.parametrize(("tile", "taps"), POINTS)
def test_transforms_compute_sums_of_products(tile: int, taps: int) -> None:
    bt, g, at = transforms(tile, taps)
    side = tile + taps - 1
    assert (bt.shape, g.shape, at.shape) == ((side, side), (side, taps), (tile, side))
    values, weights = RNG.standard_normal(side), RNG.standard_normal(taps)
    result = at @ ((g @ weights) * (bt @ values))
    assert_close(result, np.correlate(values, weights, "valid"), rel=CONVOLUTION_FLOAT64_REL)


def through_tiles(pixels: np.ndarray, weights: np.ndarray, tile: int) -> np.ndarray:
    """One tile of (C, side, side) float32 pixels: (K, tile, tile), summed in float32."""
    into, back = tile_matrices(tile, weights.shape[-1])
    tiles = into @ pixels.reshape(len(pixels), -1).T
    products = np.einsum("pkc,pc->pk", transformed_weights(weights, tile), tiles)
    return (back @ products).T.reshape(-1, tile, tile)


def trial(tile: int, taps: int) -> tuple[np.ndarray, np.ndarray]:
    side = tile + taps - 1
    pixels = RNG.standard_normal((64, side, side), dtype=np.float32)
    return pixels, RNG.standard_normal((50, 64, taps, taps), dtype=np.float32)


@pytest.mark.parametrize(("tile", "taps"), POINTS)
def test_tiles_compute_a_convolution(tile: int, taps: int) -> None:
    pixels, weights = trial(tile, taps)
    assert_close(
        through_tiles(pixels, weights, tile), correlated(pixels, weights), rel=WINOGRAD_REL
    )


@pytest.mark.parametrize(
    ("taps", "usual", "times"), [(3, (0, 1, -1, 2, -2), 1.8), (2, (0, 1, -1, 2), 1.4)]
)
def test_points_have_smaller_rounding_errors_than_the_usual_ones(
    monkeypatch: pytest.MonkeyPatch, taps: int, usual: tuple[int, ...], times: float
) -> None:
    pixels, weights = trial(4, taps)

    def error() -> float:
        difference = through_tiles(pixels, weights, 4) - correlated(pixels, weights)
        return float(np.sqrt(np.mean(difference**2)))

    ours = error()
    transforms.cache_clear()
    monkeypatch.setitem(POINTS, (4, taps), tuple(map(Fraction, usual)))
    assert error() > times * ours
    transforms.cache_clear()


def test_weights_of_halves_convolve_an_upsampled_image() -> None:
    image = RNG.standard_normal((3, 5, 7))
    weights = RNG.standard_normal((4, 3, 3, 3), dtype=np.float32)
    doubled = np.pad(image.repeat(2, 1).repeat(2, 2), ((0, 0), (1, 1), (1, 1)))
    expected = correlated(doubled, weights)
    for (row, column), part in weights_of_halves(weights).items():
        bordered = np.pad(image, ((0, 0), (1 - row, row), (1 - column, column)))
        windows = np.lib.stride_tricks.sliding_window_view(bordered, (2, 2), (1, 2))
        result = np.einsum("chwij,kcij->khw", windows, part)
        assert_close(result, expected[:, row::2, column::2], rel=WINOGRAD_REL)
