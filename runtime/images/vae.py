"""Between pixels and latents: the VAE's sessions, whole or in tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from sdexport.engines import Session

OVERLAP = 0.25
"""Share of a tile's side that it has in common with the next one."""


def decode(session: Session, latents: np.ndarray, *, tile: int | None = None) -> np.ndarray:
    """Pixels of latents.

    Args:
      session: latent_sample -> sample.
      latents: (B, C, h, w) float32, divided by the scaling factor.
      tile: side of a tile in latent cells, 2 or more; None decodes the whole at once. Tiles overlap
        by a quarter or more and are blended linearly; memory then depends on the tile and not on
        the picture.
    Returns: (B, 3, 8h, 8w) float32, nominally -1..1.
    """
    return _tiled(lambda part: session.run({"latent_sample": part})["sample"], latents, tile)


def encode(
    session: Session, pixels: np.ndarray, *, tile: int | None = None, downscale: int = 8
) -> np.ndarray:
    """The posterior of pixels.

    Args:
      session: sample -> latent_parameters.
      pixels: (B, 3, H, W) float32, -1..1; with tiles, H and W are multiples of downscale.
      tile: side of a tile in pixels, two multiples of downscale or more; None encodes the whole at
        once.
      downscale: pixels that a latent cell covers.
    Returns: (B, 2C, H/8, W/8) float32, mean and logarithm of the variance.
    """

    def run(part: np.ndarray) -> np.ndarray:
        return session.run({"sample": part})["latent_parameters"]

    return _tiled(run, pixels, tile, downscale)


def sample_posterior(moments: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Draw latents from the VAE's posterior.

    Args:
      moments: (B or 1, 2C, h, w) from `encode`.
      noise: (B, C, h, w) standard normal.
    Returns: (B, C, h, w), not yet scaled.
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
    """Run whole, or tile by tile, blending what overlaps; tiles begin at multiples of `unit`."""
    height, width = values.shape[2:]
    if tile is None or max(height, width) <= tile:
        return run(values)
    rows, columns = _starts(height, tile, unit), _starts(width, tile, unit)
    result: np.ndarray | None = None
    for (i, top), (j, left) in itertools.product(enumerate(rows), enumerate(columns)):
        cells = values[:, :, top : top + tile, left : left + tile]
        part = run(np.ascontiguousarray(cells))
        if result is None:  # now it is known how many pixels a cell has, or cells a pixel
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
    """Where tiles begin along one side: spread evenly, overlapping by a quarter or more."""
    size, tile = size // unit, tile // unit
    if size <= tile:
        return [0]
    overlap = math.ceil(tile * OVERLAP)
    count = math.ceil((size - overlap) / (tile - overlap))
    return [k * (size - tile) // (count - 1) * unit for k in range(count)]


def _weights(offsets: list[int], length: int) -> list[np.ndarray]:
    """For each tile along one side its (length,) float32 weights, which add up to one."""
    tent = np.minimum(np.arange(length) + 0.5, np.arange(length)[::-1] + 0.5)
    total = np.zeros(offsets[-1] + length)
    for offset in offsets:
        total[offset : offset + length] += tent
    return [(tent / total[o : o + length]).astype(np.float32) for o in offsets]
