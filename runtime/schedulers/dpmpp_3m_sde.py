"""DPM-Solver++ (3M) SDE, as k-diffusion's sample_dpmpp_3m_sde.

Source: Lu et al. 2022, DPM-Solver++, arXiv 2211.01095, the multistep solver of third order for the
diffusion SDE.
"""

from __future__ import annotations

import math

import numpy as np

from sdexport.runtime.schedulers.dpmpp_2s_ancestral import KDiffusionConfig
from sdexport.runtime.schedulers.latent_scaling import variance_exploding
from sdexport.runtime.schedulers.log_snr import (
    Level,
    LogSNRScheduler,
    SolverWeights,
    differences_weights,
    exponential_weights,
)
from sdexport.runtime.schedulers.schedule_arguments import number_option
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.sigma_schedules import sigma_grid, training_sigmas

ORDER = 3


class DPMSolver3MSDEScheduler(LogSNRScheduler):
    """Fresh noise in every step but the last, and the predictions of up to three steps.

    k-diffusion takes the noise from one Brownian motion over sigma. Its increments are independent,
    so that each is the noise passed to the step.

    Args:
      noise_share: 0 (no noise) to 1; k-diffusion's eta.
      s_noise: factor on the noise, 0 or more.
    """

    config: KDiffusionConfig

    def __init__(
        self,
        config: Keys,
        num_inference_steps: int,
        *,
        noise_share: float = 1.0,
        s_noise: float = 1.0,
    ) -> None:
        self.config = KDiffusionConfig.from_mapping(config)
        self._eta = number_option("noise_share", noise_share, 0, 1)
        self._s_noise = number_option("s_noise", s_noise, 0, 1e9)
        every = training_sigmas(self.config)
        timesteps, sigmas = sigma_grid(self.config, every, num_inference_steps)
        self.sigmas = np.append(sigmas, 0.0)
        levels = [Level(1.0, sigma, -math.log(sigma)) for sigma in sigmas.tolist()]
        scaling = variance_exploding(self.sigmas, self.config)
        super().__init__(
            timesteps,
            [*levels, Level(1.0, 0.0, math.inf)],
            predicts_noise=False,
            remembered=ORDER,
            scaling=scaling,
        )

    def _highest_order(self, i: int) -> int:
        return 1 if i == len(self.timesteps) - 1 else ORDER

    def _solver_weights(self, i: int, order: int) -> SolverWeights:
        """Source: 2211.01095, appendix, with the width (1 + eta) h."""
        start, end = self._levels[i], self._levels[i + 1]
        if not end.sigma:
            return SolverWeights(0.0, (1.0,))
        step = end.log_snr - start.log_snr
        width = step * (1 + self._eta)
        first, second, third = exponential_weights(-width, -1.0)
        noise = end.sigma * math.sqrt(-math.expm1(-2 * step * self._eta)) * self._s_noise
        same = math.exp(-width)
        past = differences_weights((first, second, third), step, self._widths_before(i, order))
        return SolverWeights(same, past, noise)

    def takes_noise(self, i: int) -> bool:
        return self._eta > 0 and i < len(self.timesteps) - 1
