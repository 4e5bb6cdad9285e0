"""Models trained with EDM's preconditioning: configuration, noise levels, and scaling.

Source: Karras et al. 2022, arXiv 2206.00364, table 1 and section 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.latent_scaling import LatentScaling
from sdexport.runtime.schedulers.level_schedules import FOR_BETAS, LEVEL_SCHEDULES
from sdexport.runtime.schedulers.linear_combination import Combination
from sdexport.runtime.schedulers.noise_schedules import exponential_sigmas, karras_sigmas
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule, custom_schedule
from sdexport.runtime.schedulers.scheduler_config import ABOVE_ZERO
from sdexport.runtime.schedulers.sigma_schedules import SCHEDULES, ScheduleConfig

_TABLE_SIZE = 1000  # levels in place of those of the training, as in ComfyUI


@dataclass(frozen=True, kw_only=True)
class EDMConfig(ScheduleConfig):
    """Keys of diffusers' EDM schedulers; those of SchedulerConfig about betas have no effect."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    sigma_schedule: str = "karras"
    rho: float = 7.0
    final_sigmas_type: str = "zero"

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "sigma_min": (ABOVE_ZERO, 1e9),
        "sigma_max": (ABOVE_ZERO, 1e9),
        "sigma_data": (ABOVE_ZERO, 1e9),
        "rho": (0.1, 1000),
    }
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction_type": ("epsilon", "v_prediction"),
        "sigma_schedule": ("karras", "exponential"),
        "schedule": tuple(name for name in SCHEDULES if name not in FOR_BETAS),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise InvalidArgumentError(
                f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}"
            )


def edm_sigmas(
    config: EDMConfig, steps: int, sigmas: CustomSchedule = None, *, repeats_last: bool = True
) -> np.ndarray:
    """Noise levels before each step and after the last, (steps + 1,) float64.

    Args:
      repeats_last: final_sigmas_type "sigma_min" is the level before the last step, not sigma_min
        itself; they differ in runs of one step.
      sigmas: the caller's own falling levels, one more than steps.
    """
    config.check_steps(steps)
    if sigmas is not None:
        if config.schedule:
            raise InvalidArgumentError("sigmas and schedule exclude each other")
        levels = custom_schedule("sigmas", sigmas, 1e9, length=steps + 1)
        if not levels[-2]:
            raise InvalidArgumentError("sigmas: only the last may be 0")
        return levels
    low, high = config.sigma_min, config.sigma_max
    if config.spaced_by in LEVEL_SCHEDULES:
        every = exponential_sigmas(low, high, _TABLE_SIZE)[::-1]
        levels = LEVEL_SCHEDULES[str(config.spaced_by)](every, steps)
    elif config.spaced_by:
        levels = config.spaced_sigmas(low, high, steps)
    elif config.sigma_schedule == "karras":
        levels = karras_sigmas(low, high, steps, config.rho)
    else:  # of one step, only sigma_min is left, as in diffusers
        levels = exponential_sigmas(low, high, steps) if steps > 1 else np.array([low])
    lowest = float(levels[-1]) if repeats_last else low
    return np.append(levels, lowest if config.final_sigmas_type == "sigma_min" else 0.0)


def edm_timesteps(sigmas: np.ndarray) -> np.ndarray:
    """The UNet's timestep input at each noise level, c_noise of table 1, same shape, float64."""
    return np.asarray(0.25 * np.log(sigmas))


def edm_scaling(config: EDMConfig, sigmas: np.ndarray, evaluated: list[float]) -> LatentScaling:
    """Latents original + sigma * noise, for a UNet with EDM's preconditioning.

    Args:
      sigmas: (steps + 1,) float64, from edm_sigmas.
      evaluated: the level of the latents from which each step predicts the clean ones.
    Source: table 1, c_in, c_skip and c_out.
    """
    levels: list[float] = sigmas[:-1].tolist()
    return LatentScaling(
        alphas=[1.0] * len(levels),
        sigmas=levels,
        originals=[_predicted_original(config, sigma) for sigma in evaluated],
        input_scales=[1 / math.hypot(sigma, config.sigma_data) for sigma in levels],
        init_noise_sigma=math.hypot(config.sigma_max, 1.0),
    )


def _predicted_original(config: EDMConfig, sigma: float) -> Combination:
    """c_skip * x + c_out * prediction; diffusers' v_prediction has the opposite sign of c_out."""
    size = math.hypot(sigma, config.sigma_data)
    c_out = sigma * config.sigma_data / size
    sign = 1.0 if config.prediction_type == "epsilon" else -1.0
    return Combination(sample=(config.sigma_data / size) ** 2, noise_pred=sign * c_out)
