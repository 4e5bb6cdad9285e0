"""The latent space of a VAE: shapes, and the scaling between VAE and denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LatentSpace:
    """Latents are (B, channels, height / downscale, width / downscale) float32.

    downscale: pixels along one side of a latent cell.
    scaling_factor: the denoiser's latents divided by the VAE's.
    """

    channels: int
    downscale: int
    scaling_factor: float

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of (height, width) pixels."""
        return self.channels, height // self.downscale, width // self.downscale

    def to_vae(self, latents: np.ndarray) -> np.ndarray:
        """The denoiser's latents as the VAE decoder takes them."""
        scaled: np.ndarray = latents / np.float32(self.scaling_factor)
        return scaled

    def from_vae(self, latents: np.ndarray) -> np.ndarray:
        """The VAE encoder's latents as the denoiser takes them."""
        scaled: np.ndarray = latents * np.float32(self.scaling_factor)
        return scaled

    def is_posterior(self, channels: int | str) -> bool:
        """Whether an encoder output of so many channels holds mean and log variance.

        AutoencoderTiny gives the latents themselves.
        """
        return channels != self.channels


def downscale_of(vae: Mapping[str, Any]) -> int:
    """Pixels along one side of a latent cell, from a VAE's configuration."""
    levels = vae.get("block_out_channels") or vae.get("decoder_block_out_channels") or (0,) * 4
    return int(2 ** (len(levels) - 1))


def latent_size_of(denoiser: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in latent cells that a denoiser was trained on; 64 where it is not said."""
    side = denoiser.get("sample_size") or 64
    height, width = (side, side) if isinstance(side, int) else side
    return int(height), int(width)
