"""Between pixels and latents: the VAE, for the whole image or in tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from sdexport.engines import Session

OVERLAP = 0.25
"""Least overlap of adjacent tiles, as a fraction of a tile's side."""


def decode(session: Session, latents: np.ndarray, *, tile: int | None = None) -> np.ndarray:
    """Decode latents into a sample.

    Args:
      session: the VAE's decoder, latent_sample -> sample.
      latents: (B, C, h, w) float32, already divided by the scaling factor.
      tile: side of a tile in latent cells, 2 or more; None decodes the whole at once. Tiles overlap
        by a quarter or more and are blended linearly; the memory depends on the tile, not on the
        image.
    Returns: (B, 3, 8h, 8w) float32, nominally -1..1.
    """
    return _tiled(lambda part: session.run({"latent_sample": part})["sample"], latents, tile)


def encode(
    session: Session, pixels: np.ndarray, *, tile: int | None = None, downscale: int = 8
) -> np.ndarray:
    """Encode a sample into the parameters of its posterior.

    Args:
      session: the VAE's encoder, sample -> latent_parameters.
      pixels: (B, 3, H, W) float32 in -1..1; with tiles, H and W are multiples of `downscale`.
      tile: side of a tile in pixels, a multiple of `downscale` and at least twice that; None
        encodes the whole at once.
      downscale: pixels per latent cell, on each side.
    Returns: (B, 2C, H/downscale, W/downscale) float32: mean, then logarithm of the variance.
    """

    def run(part: np.ndarray) -> np.ndarray:
        return session.run({"sample": part})["latent_parameters"]

    return _tiled(run, pixels, tile, downscale)


def sample_posterior(moments: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Draw latents from the VAE's posterior.

    Args:
      moments: (B or 1, 2C, h, w) float32 from `encode`.
      noise: (B, C, h, w) float32, standard normal.
    Returns: (B, C, h, w) float32, not yet multiplied by the scaling factor.
    Source: Kingma and Welling 2013, arXiv 1312.6114, eq. 10; diffusers clips the logarithm of the
      variance to -30..20.
    """
    mean, log_variance = np.split(moments, 2, axis=1)
    deviation = np.exp(np.float32(0.5) * np.clip(log_variance, -30, 20))
    drawn: np.ndarray = mean + deviation * noise
    return drawn


def _tiled(
    run: Callable[[np.ndarray], np.ndarray], values: np.ndarray, tile: int | None, unit: int = 1
) -> np.ndarray:
    """Run on the whole or tile by tile, and blend overlaps; tiles start at multiples of `unit`."""
    height, width = values.shape[2:]
    if tile is None or max(height, width) <= tile:
        return run(values)
    rows, columns = _starts(height, tile, unit), _starts(width, tile, unit)
    result: np.ndarray | None = None
    for (i, top), (j, left) in itertools.product(enumerate(rows), enumerate(columns)):
        cells = values[:, :, top : top + tile, left : left + tile]
        part = run(np.ascontiguousarray(cells))
        if result is None:  # the first output shows the scale
            scale = Fraction(part.shape[2], cells.shape[2])
            down = _weights([int(start * scale) for start in rows], part.shape[2])
            across = _weights([int(start * scale) for start in columns], part.shape[3])
            size = (int(height * scale), int(width * scale))
            result = np.zeros((*part.shape[:2], *size), part.dtype)
        y, x = int(top * scale), int(left * scale)
        part *= down[i][:, None]
        part *= across[j]
        result[:, :, y : y + part.shape[2], x : x + part.shape[3]] += part
    assert result is not None  # for the type checker: there is at least one tile
    return result


def _starts(size: int, tile: int, unit: int) -> list[int]:
    """Where tiles start along one side: evenly spaced, overlapping by a quarter or more."""
    size, tile = size // unit, tile // unit
    if size <= tile:
        return [0]
    overlap = math.ceil(tile * OVERLAP)
    count = math.ceil((size - overlap) / (tile - overlap))
    return [k * (size - tile) // (count - 1) * unit for k in range(count)]


def _weights(offsets: list[int], length: int) -> list[np.ndarray]:
    """The weights of each tile along one side, (length,) float32; overlapping ones add up to 1."""
    tent = np.minimum(np.arange(length) + 0.5, np.arange(length)[::-1] + 0.5)
    total = np.zeros(offsets[-1] + length)
    for offset in offsets:
        total[offset : offset + length] += tent
    return [(tent / total[o : o + length]).astype(np.float32) for o in offsets]
