"""Euler's method with ancestral noise, as in k-diffusion's sample_euler_ancestral.

Source: Karras et al. 2022, arXiv 2206.00364, eq. 1; DDIM, arXiv 2010.02502, eq. 16 with eta 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.runtime.schedulers.latent_scaling import derivative, variance_exploding
from sdexport.runtime.schedulers.linear_combination import NOISE, SAMPLE, Combination
from sdexport.runtime.schedulers.scheduler_base import Scheduler
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.sigma_schedules import (
    ScheduleConfig,
    ancestral_split,
    sigma_grid,
    training_sigmas,
)


@dataclass(frozen=True, kw_only=True)
class EulerAncestralConfig(ScheduleConfig):
    """Keys of diffusers' EulerAncestralDiscreteScheduler."""

    timestep_spacing: str = "linspace"
    rescale_betas_zero_snr: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction_type": ("epsilon", "v_prediction")
    }


class EulerAncestralDiscreteScheduler(Scheduler):
    """Every step goes to a lower noise level by Euler's method, and back up with fresh noise."""

    config: EulerAncestralConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        self.config = EulerAncestralConfig.from_mapping(config)
        every = training_sigmas(self.config)
        timesteps, sigmas = sigma_grid(self.config, every, num_inference_steps)
        self.sigmas = np.append(sigmas, 0.0)
        super().__init__(timesteps, variance_exploding(self.sigmas, self.config))
        self._weights = self._table(self._formula)

    def _formula(self, i: int) -> Combination:
        """x + (sigma_down - sigma) dx/dsigma + sigma_up z."""
        sigma, sigma_next = float(self.sigmas[i]), float(self.sigmas[i + 1])
        sigma_down, sigma_up = ancestral_split(sigma, sigma_next)
        slope = derivative(self._scaling.originals[i], sigma)
        return SAMPLE + (sigma_down - sigma) * slope + sigma_up * NOISE

    def takes_noise(self, i: int) -> bool:
        """Always: diffusers draws noise in the last step too, where its weight is 0."""
        return True
