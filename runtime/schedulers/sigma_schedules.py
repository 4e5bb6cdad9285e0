"""Noise levels of the samplers whose latents are original + sigma * noise.

Source: Karras et al. 2022, arXiv 2206.00364, eq. 1 and 5; k-diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.level_schedules import LEVEL_SCHEDULES
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule, custom_schedule
from sdexport.runtime.schedulers.scheduler_config import ABOVE_ZERO, SchedulerConfig

SMALLEST_ALPHA_CUMPROD = 2.0**-24
"""diffusers' value in place of zero, where rescaled betas leave no signal."""


SCHEDULES = ("timesteps", *noise_schedules.SIGMA_SCHEDULES, *LEVEL_SCHEDULES)
"""Values of the key and option `schedule`; "timesteps" spaces by timestep_spacing."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(SchedulerConfig):
    """The key that spaces noise levels by a schedule, which diffusers does not have."""

    schedule: str | None = None

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"schedule": SCHEDULES}

    @property
    def spaced_by(self) -> str | None:
        """The schedule that spaces the noise levels; None if the timesteps do."""
        return None if self.schedule == "timesteps" else self.schedule

    def spaced_sigmas(self, low: float, high: float, steps: int) -> np.ndarray:
        """Noise levels of a schedule between two levels, from high to low, (steps,) float64."""
        return noise_schedules.SIGMA_SCHEDULES[str(self.spaced_by)](low, high, steps)

    def training_levels(self, every: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Fractional timesteps and noise levels of a schedule over all levels of the training.

        Args:
          every: the levels of the training, rising.
        Returns: two (n,) float64; n is `steps` or, of some schedules, a few more or less.
        """
        levels = LEVEL_SCHEDULES[str(self.spaced_by)](every, steps)
        return noise_schedules.sigma_to_timestep(levels, every), levels

    def check_no_sigma_schedule(self) -> None:
        """Raise InvalidArgumentError if the configuration spaces noise levels: timesteps cannot."""
        if self.spaced_by:
            raise InvalidArgumentError(
                f"timesteps: the configuration has the schedule '{self.spaced_by}'; give one or "
                "the other"
            )


@dataclass(frozen=True, kw_only=True)
class SigmaConfig(ScheduleConfig):
    """Keys that choose how noise levels are spaced: at most one of the three of diffusers."""

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "sigma_min": (ABOVE_ZERO, 1e9),
        "sigma_max": (ABOVE_ZERO, 1e9),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [f"use_{name}_sigmas" for name in self._used()]
        if len(chosen) > 1:
            raise InvalidArgumentError(f"{' and '.join(chosen)} exclude each other")
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise InvalidArgumentError(f"sigma_min {low} must be below sigma_max {high}")

    def _used(self) -> list[str]:
        """Schedules that the keys of diffusers choose."""
        return [s for s in noise_schedules.SIGMA_SCHEDULES if getattr(self, f"use_{s}_sigmas")]

    @property
    def spaced_by(self) -> str | None:
        """As in ScheduleConfig; `schedule` comes before the keys of diffusers."""
        return super().spaced_by if self.schedule else next(iter(self._used()), None)

    def spaced_sigmas(self, low: float, high: float, steps: int) -> np.ndarray:
        """As in ScheduleConfig; sigma_min and sigma_max of the configuration come first."""
        low = low if self.sigma_min is None else self.sigma_min
        high = high if self.sigma_max is None else self.sigma_max
        return super().spaced_sigmas(low, high, steps)

    def training_levels(self, every: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """As in ScheduleConfig. Raises: InvalidArgumentError: sigma_min or sigma_max is set."""
        if self.sigma_min is not None or self.sigma_max is not None:
            raise InvalidArgumentError(
                f"schedule '{self.schedule}' has no sigma_min and sigma_max; "
                f"{', '.join(noise_schedules.SIGMA_SCHEDULES)} have"
            )
        return super().training_levels(every, steps)


def training_sigmas(config: SchedulerConfig) -> np.ndarray:
    """Noise level of every training timestep, rising, (num_train_timesteps,) float64."""
    kept = config.alphas_cumprod()
    if config.rescale_betas_zero_snr:
        kept[-1] = SMALLEST_ALPHA_CUMPROD
    return np.asarray(np.sqrt((1 - kept) / kept))


def single_sigmas(config: SchedulerConfig) -> np.ndarray:
    """diffusers' own table in float32, from which it computes timesteps; see single_betas."""
    if config.rescale_betas_zero_snr:
        return training_sigmas(config).astype(np.float32)
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
    config: ScheduleConfig, every: np.ndarray, steps: int, timesteps: CustomSchedule = None
) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and noise levels, both (steps,) float64, without the final zero.

    Some schedules have a few steps more or less.

    Args:
      every: from training_sigmas.
      timesteps: the caller's own.
    """
    if timesteps is None:
        found = config.spaced_timesteps(steps)
    else:
        config.check_steps(steps)
        config.check_no_sigma_schedule()
        found = custom_schedule("timesteps", timesteps, len(every), length=steps)
    sigmas = np.interp(found, np.arange(len(every)), every)
    if config.spaced_by in LEVEL_SCHEDULES:
        return config.training_levels(every, steps)
    if config.spaced_by:
        sigmas = config.spaced_sigmas(float(sigmas[-1]), float(sigmas[0]), steps)
        single = single_sigmas(config)
        low, high = np.interp(found[[-1, 0]], np.arange(len(every)), single).tolist()
        again = config.spaced_sigmas(low, high, steps)
        found = noise_schedules.sigma_to_timestep(again, single)
    return found, sigmas


def interleave(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first[0], second[0], first[1], second[1] and so on, ending with the last of `first`."""
    both = np.repeat(first, 2)[:-1]
    both[1::2] = second[: len(first) - 1]
    return both


def ancestral_split(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """The level to step down to, and the noise to add, which together make sigma_next.

    Args:
      eta: share of the noise, 0 to 1.
    Source: k-diffusion's ancestral step; DDIM, arXiv 2010.02502, eq. 16 with eta 1.
    """
    variance = sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2
    added = min(sigma_next, eta * math.sqrt(max(0.0, variance)))
    return math.sqrt(max(0.0, sigma_next**2 - added**2)), added
