"""Noisy latents for training, with timesteps at which the caption alone says what to draw."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sdexport.demo_model import architecture as arch

CAPTION_DROPOUT = 0.1
SNR_FLOOR, SNR_CAP = 0.05, 5.0
"""The error of the predicted image counts by the signal-to-noise ratio, within these bounds."""
NOISY_SHARE, NOISY_FROM = 0.4, 850
"""The share of examples with a timestep of NOISY_FROM or more; the others have any timestep."""
BLANK_SHARE, BLANK_FROM = 0.6, 880
"""The share of the samples with a timestep of BLANK_FROM or more that are noise alone."""
ELSEWHERE_SHARE, ELSEWHERE_FROM = 0.5, 400
"""The share of the samples with a timestep of ELSEWHERE_FROM or more that show the objects
elsewhere, where such latents are given."""
NOISE_OFFSET = 0.25
"""Standard deviation of the mean of the noise in each channel, where a sample shows an image."""


class NoisyLatents(NamedTuple):
    """Clean and noisy latents and the noise (B, 4, 16, 16), timesteps, token ids (B, 77), the
    signal-to-noise ratio (B), whether the sample is noise alone (B), and whether the caption is
    empty (B)."""

    latents: torch.Tensor
    sample: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    input_ids: torch.Tensor
    snr: torch.Tensor
    blank: torch.Tensor
    without_caption: torch.Tensor


def draw_noise(
    latents: torch.Tensor,
    input_ids: torch.Tensor,
    generator: torch.Generator,
    *,
    owner: torch.Tensor | None = None,
    may_be_blank: torch.Tensor | bool = True,
    blank_without_caption: bool = False,
    elsewhere: torch.Tensor | None = None,
    noisy_share: float = NOISY_SHARE,
    blank_share: float = BLANK_SHARE,
) -> NoisyLatents:
    """Draw timesteps and noise, and leave out captions.

    Args:
      owner: (B) the row whose timestep and noise each row has; its own by default.
      may_be_blank: (B) whether the sample may be noise alone, next to a caption. Where an object
        may be anywhere, a model that is shown noise alone learns to draw none at first, and then
        small ones get lost.
      blank_without_caption: whether it may be noise alone where the caption is left out, too.
      elsewhere: (B, 4, 16, 16) the same objects in other places. Samples that show these teach a
        model that is given the right places to move the objects there.
      noisy_share, blank_share: see NOISY_SHARE and BLANK_SHARE.
    """
    rows = torch.arange(len(latents)) if owner is None else owner

    def uniform() -> torch.Tensor:
        return torch.rand(len(latents), generator=generator)[rows]

    late = NOISY_FROM + (1000 - NOISY_FROM) * uniform()
    timesteps = torch.where(uniform() < noisy_share, late, 1000 * uniform()).long()
    blank = (timesteps >= BLANK_FROM) & (uniform() < blank_share) & torch.as_tensor(may_be_blank)
    input_ids = input_ids.clone()
    without_caption = uniform() < CAPTION_DROPOUT
    blank &= ~without_caption | blank_without_caption
    input_ids[without_caption] = _no_caption(input_ids)
    pure = torch.randn(latents.shape, generator=generator)[rows]
    offset = NOISE_OFFSET * torch.randn(*latents.shape[:2], 1, 1, generator=generator)[rows]
    signal = alphas_cumprod()[timesteps].view(-1, 1, 1, 1)
    seen = latents
    if elsewhere is not None:
        moved = (timesteps >= ELSEWHERE_FROM) & (uniform() < ELSEWHERE_SHARE)
        seen = torch.where(moved.view(-1, 1, 1, 1), elsewhere, latents)
    shown = signal.sqrt() * seen + (1 - signal).sqrt() * (pure + offset)
    sample = torch.where(blank.view(-1, 1, 1, 1), pure, shown)
    noise = (sample - signal.sqrt() * latents) / (1 - signal).sqrt()
    snr = (signal / (1 - signal)).flatten()
    return NoisyLatents(latents, sample, noise, timesteps, input_ids, snr, blank, without_caption)


def _no_caption(input_ids: torch.Tensor) -> torch.Tensor:
    """The token ids of an empty caption; every caption starts and ends with the special tokens."""
    empty = torch.full_like(input_ids[0], int(input_ids[0, -1]))
    empty[0] = input_ids[0, 0]
    return empty


def weighted_error(
    predicted_noise: torch.Tensor,
    batch: NoisyLatents,
    *,
    floor: float = SNR_FLOOR,
    cells: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """The mean squared error of the noise, weighted by the timestep: a scalar.

    Args:
      floor: see SNR_FLOOR.
      cells: (B, 1, 16, 16) how much each cell of the latents counts.
    Source: Hang et al. 2023, arXiv 2303.09556, eq. 6, with a floor.
    """
    error = ((predicted_noise - batch.noise).square() * cells).mean(dim=(1, 2, 3))
    return (error * batch.snr.clamp(floor, SNR_CAP) / batch.snr).mean()


def predicted_latents(predicted_noise: torch.Tensor, batch: NoisyLatents) -> torch.Tensor:
    """The clean latents that follow from the predicted noise: (B, 4, 16, 16)."""
    snr = batch.snr.view(-1, 1, 1, 1)
    return batch.sample * (1 + 1 / snr).sqrt() - predicted_noise / snr.sqrt()


def alphas_cumprod() -> torch.Tensor:
    """The signal's share of the variance of a noisy latent at each timestep: (1000,) float32."""
    config = arch.SCHEDULER_CONFIG
    low, high = (float(config[key]) ** 0.5 for key in ("beta_start", "beta_end"))  # type: ignore[arg-type]
    betas = torch.linspace(low, high, 1000, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()
