"""The latent space of a VAE: shapes, and the scaling between VAE and denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_DEFAULT_SCALING_FACTOR = 0.18215


@dataclass(frozen=True)
class LatentSpace:
    """Latents are (B, channels, height / downscale, width / downscale) float32.

    downscale: pixels along one side of a latent cell.
    scaling_factor: the denoiser's latents divided by the VAE's, once those have mean 0 and standard
      deviation 1.
    mean, std: of each channel of the VAE's latents; without them they are taken to be 0 and 1.
    """

    channels: int
    downscale: int
    scaling_factor: float
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError: mean and std are not one finite number for each channel."""
        if (self.mean is None) != (self.std is None):
            raise ValueError("latents_mean and latents_std must be there together")
        for numbers in (self.mean, self.std):
            if numbers is not None and not (
                len(numbers) == self.channels and np.isfinite(numbers).all()
            ):
                raise ValueError(
                    f"latents_mean and latents_std must hold {self.channels} finite numbers"
                )
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("latents_std must be positive")

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of (height, width) pixels."""
        return self.channels, height // self.downscale, width // self.downscale

    def to_vae(self, latents: np.ndarray) -> np.ndarray:
        """The denoiser's latents as the VAE decoder takes them."""
        if self.mean is None or self.std is None:
            scaled: np.ndarray = latents / np.float32(self.scaling_factor)
            return scaled
        spread = latents * _by_channel(self.std) / np.float32(self.scaling_factor)
        return np.asarray(spread + _by_channel(self.mean))

    def from_vae(self, latents: np.ndarray) -> np.ndarray:
        """The VAE encoder's latents as the denoiser takes them."""
        if self.mean is None or self.std is None:
            scaled: np.ndarray = latents * np.float32(self.scaling_factor)
            return scaled
        centred = (latents - _by_channel(self.mean)) * np.float32(self.scaling_factor)
        return np.asarray(centred / _by_channel(self.std))

    def is_posterior(self, channels: int | str) -> bool:
        """Whether an encoder output of so many channels holds mean and log variance.

        AutoencoderTiny gives the latents themselves.
        """
        return channels != self.channels


def _by_channel(numbers: tuple[float, ...]) -> np.ndarray:
    """(1, C, 1, 1) float32, in the latents' layout."""
    return np.array(numbers, np.float32).reshape(1, -1, 1, 1)


def latent_space_of(vae: Mapping[str, Any]) -> LatentSpace:
    """The latent space of a VAE's configuration.

    Raises: TypeError, ValueError: a value that makes no sense.
    """
    numbers = (vae.get("latents_mean"), vae.get("latents_std"))
    mean, std = (None if n is None else tuple(map(float, n)) for n in numbers)
    channels = int(vae.get("latent_channels") or 4)
    factor = float(vae.get("scaling_factor") or _DEFAULT_SCALING_FACTOR)
    return LatentSpace(channels, downscale_of(vae), factor, mean, std)


def downscale_of(vae: Mapping[str, Any]) -> int:
    """Pixels along one side of a latent cell, from a VAE's configuration."""
    levels = vae.get("block_out_channels") or vae.get("decoder_block_out_channels") or (0,) * 4
    return int(2 ** (len(levels) - 1))


def latent_size_of(denoiser: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in latent cells that a denoiser was trained on; 64 where it is not said."""
    side = denoiser.get("sample_size") or 64
    height, width = (side, side) if isinstance(side, int) else side
    return int(height), int(width)
