"""Euler's method from clean latents to noise.

k-diffusion's sample_euler over rising levels, as ComfyUI's node "Flip Sigmas" gives them. Source:
Karras et al. 2022, arXiv 2206.00364, eq. 1.
"""

from __future__ import annotations

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.dpmpp_2s_ancestral import KDiffusionConfig
from sdexport.runtime.schedulers.latent_scaling import derivative, variance_exploding
from sdexport.runtime.schedulers.linear_combination import SAMPLE, Combination
from sdexport.runtime.schedulers.scheduler_base import Scheduler
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.sigma_schedules import sigma_grid, training_sigmas

LOWEST = 1e-4
"""The level of clean latents: the slope at zero is not defined."""


class EulerInverseScheduler(Scheduler):
    """The steps of Euler's method upwards, each with the slope at its start.

    The result is original + sigma * noise at the highest level. Divide it by that level to use it
    as the `latents` of an image.
    """

    inverts = True
    config: KDiffusionConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        self.config = KDiffusionConfig.from_mapping(config)
        every = training_sigmas(self.config)
        _, falling = sigma_grid(self.config, every, num_inference_steps)
        if falling[-1] <= LOWEST:
            raise InvalidArgumentError(f"sigmas must be above {LOWEST:g}, got {falling[-1]:g}")
        self.sigmas = np.append(falling, LOWEST)[::-1].copy()
        super().__init__(
            noise_schedules.sigma_to_timestep(self.sigmas[:-1], every),
            variance_exploding(self.sigmas, self.config),
        )
        self.init_noise_sigma = 1.0
        self._weights = self._table(self._formula)

    def _formula(self, i: int) -> Combination:
        """x + (sigma_next - sigma) dx/dsigma."""
        sigma, sigma_next = float(self.sigmas[i]), float(self.sigmas[i + 1])
        return SAMPLE + (sigma_next - sigma) * derivative(self._scaling.originals[i], sigma)
