"""Noise levels of the samplers whose latents are x + sigma noise, as k-diffusion writes them.

Source: Karras et al. 2022, arXiv 2206.00364, eq. 1 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.config import ScheduleConfig, custom_schedule

SMALLEST_ALPHA_CUMPROD = 2.0**-24
"""What diffusers puts in the place of zero, where rescaled betas leave no signal."""


@dataclass(frozen=True, kw_only=True)
class SpreadConfig(ScheduleConfig):
    """Keys for other ways to spread the noise levels; at most one of the three."""

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None

    rescale_betas_zero_snr = False  # a key of some of these samplers only

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_beta_sigmas:
            raise ValueError(
                "use_beta_sigmas needs SciPy and is left out; "
                "use_karras_sigmas and use_exponential_sigmas are there"
            )
        if self.use_karras_sigmas and self.use_exponential_sigmas:
            raise ValueError("use_karras_sigmas and use_exponential_sigmas exclude each other")
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"sigma_min {low} must be below sigma_max {high}")

    @property
    def is_spread(self) -> bool:
        return self.use_karras_sigmas or self.use_exponential_sigmas

    def spread(self, low: float, high: float, steps: int) -> np.ndarray:
        """Noise levels from high to low by the chosen rule; sigma_min and sigma_max go before."""
        low = low if self.sigma_min is None else self.sigma_min
        high = high if self.sigma_max is None else self.sigma_max
        rule = (
            noise_schedules.karras_sigmas
            if self.use_karras_sigmas
            else noise_schedules.exponential_sigmas
        )
        return rule(low, high, steps)


def training_sigmas(config: ScheduleConfig, *, zero_terminal_snr: bool = False) -> np.ndarray:
    """Noise level of every training timestep, rising, (num_train_timesteps,) float64."""
    kept = noise_schedules.alphas_cumprod(config.betas(), zero_terminal_snr=zero_terminal_snr)
    if zero_terminal_snr:
        kept[-1] = SMALLEST_ALPHA_CUMPROD
    return np.asarray(np.sqrt((1 - kept) / kept))


def single_sigmas(config: ScheduleConfig, *, zero_terminal_snr: bool = False) -> np.ndarray:
    """diffusers' own float32 table, from which it finds timesteps back; see single_betas."""
    if zero_terminal_snr:
        return training_sigmas(config, zero_terminal_snr=True).astype(np.float32)
    values = noise_schedules.single_betas(
        config.beta_schedule,
        config.beta_start,
        config.beta_end,
        config.num_train_timesteps,
        config.trained_betas,
    )
    one = np.float32(1)
    kept = np.cumprod((one - values).astype(np.float64)).astype(np.float32)
    return np.asarray(np.sqrt((one - kept) / kept))


def sigma_grid(
    config: SpreadConfig, every: np.ndarray, steps: int, timesteps: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and noise levels, both (steps,) float64, without the final zero.

    Args:
      every: from training_sigmas.
      timesteps: the caller's own.
    """
    config.check_steps(steps)
    if timesteps is None:
        found = noise_schedules.spaced_timesteps(
            config.timestep_spacing, steps, len(every), config.steps_offset
        )
    else:
        if config.is_spread:
            raise ValueError("timesteps: the configuration spreads sigmas; give one or the other")
        found = custom_schedule("timesteps", timesteps, len(every), length=steps)
    sigmas = np.interp(found, np.arange(len(every)), every)
    if config.is_spread:
        sigmas = config.spread(float(sigmas[-1]), float(sigmas[0]), steps)
        single = single_sigmas(config, zero_terminal_snr=config.rescale_betas_zero_snr)
        ends = np.interp(found[[-1, 0]], np.arange(len(every)), single).tolist()
        found = noise_schedules.sigma_to_timestep(config.spread(ends[0], ends[1], steps), single)
    return found, sigmas


def start_sigma(config: ScheduleConfig, sigmas: Any) -> float:
    """init_noise_sigma; leading timesteps start below pure noise, beside unit-variance latents."""
    highest = float(np.max(sigmas))
    return math.hypot(highest, 1.0) if config.timestep_spacing == "leading" else highest


def input_scales(sigmas: np.ndarray) -> list[float]:
    """Factors that bring x + sigma noise to unit variance. Source: table 1, c_in."""
    return [1 / math.hypot(sigma, 1.0) for sigma in sigmas.tolist()]


def interleave(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first[0], second[0], first[1], second[1] and so on, ending with the last of `first`."""
    both = np.repeat(first, 2)[:-1]
    both[1::2] = second[: len(first) - 1]
    return both


def ancestral_split(start: float, goal: float) -> tuple[float, float]:
    """The level to go down to, and the noise to add, so that both together make `goal`.

    Source: k-diffusion's ancestral step; DDIM, arXiv 2010.02502, eq. 16 with eta 1.
    """
    added = min(goal, math.sqrt(max(0.0, goal**2 * (start**2 - goal**2) / start**2)))
    return math.sqrt(max(0.0, goal**2 - added**2)), added
