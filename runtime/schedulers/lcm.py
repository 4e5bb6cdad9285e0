"""LCM, the sampler of latent consistency models. Source: Luo et al. 2023, arXiv 2310.04378."""

from __future__ import annotations

import math

import numpy as np

from sdexport.runtime.schedulers.consistency import ConsistencyConfig, consistency_timesteps
from sdexport.runtime.schedulers.latent_scaling import of_alphas_cumprod
from sdexport.runtime.schedulers.linear_combination import NOISE, ORIGINAL, SAMPLE, Combination
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule
from sdexport.runtime.schedulers.scheduler_base import Scheduler, StepResult
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.step_history import weighted_sum

SIGMA_DATA = 0.5


class LCMScheduler(Scheduler):
    """Every step predicts clean latents and adds noise for the next timestep, except the last.

    `pred_original_sample` is diffusers' `denoised`, with the boundary condition applied.

    Args:
      num_inference_steps: 1 <= steps <= original_inference_steps * strength.
      timesteps, original_inference_steps, strength: see consistency_timesteps.
    """

    config: ConsistencyConfig

    def __init__(
        self,
        config: Keys,
        num_inference_steps: int,
        *,
        timesteps: CustomSchedule = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        self.config = ConsistencyConfig.from_mapping(config)
        found = consistency_timesteps(
            self.config, num_inference_steps, timesteps, original_inference_steps, strength
        )
        kept = self.config.alphas_cumprod()[found.astype(np.int64)]
        super().__init__(found, of_alphas_cumprod(kept, self.config))
        self._denoised = self._table(self._consistency)
        self._weights = self._table(self._formula)

    def _consistency(self, i: int) -> Combination:
        """c_out x0 + c_skip x, eq. 9; the coefficients: arXiv 2303.01469, appendix C."""
        time = float(self.timesteps[i]) * self.config.timestep_scaling
        reach = math.hypot(time, SIGMA_DATA)
        return time / reach * ORIGINAL + (SIGMA_DATA / reach) ** 2 * SAMPLE

    def _formula(self, i: int) -> Combination:
        """alpha' x0 + sigma' z at the next timestep, section 4.1; x0 after the last step."""
        if i == len(self.timesteps) - 1:
            return ORIGINAL
        return self._scaling.alphas[i + 1] * ORIGINAL + self._scaling.sigmas[i + 1] * NOISE

    def takes_noise(self, i: int) -> bool:
        return i < len(self.timesteps) - 1

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """Predict clean latents, and add noise for the next timestep."""
        history, c, w = self._history, self._denoised[i], self._weights[i]
        original = self._original(noise_pred, i, sample)
        denoised = weighted_sum(
            original, history.scratch, (c.original, original), (c.sample, sample)
        )
        return StepResult(history.sum((w.original, denoised), (w.noise, noise)), denoised)
