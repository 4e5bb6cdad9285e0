"""TCD, trajectory consistency distillation. Source: Zheng et al. 2024, arXiv 2402.19159."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from sdexport.runtime.schedulers.consistency import ConsistencyConfig, consistency_timesteps
from sdexport.runtime.schedulers.latent_scaling import of_alphas_cumprod, predicted_noise
from sdexport.runtime.schedulers.linear_combination import NOISE, ORIGINAL, Combination
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule, number_option
from sdexport.runtime.schedulers.scheduler_base import Scheduler
from sdexport.runtime.schedulers.scheduler_config import Keys


class TCDScheduler(Scheduler):
    """Every step goes beyond the next timestep, by a share eta, and back up to it with noise.

    Args:
      num_inference_steps: 1 <= steps <= original_inference_steps * strength.
      eta: the paper's gamma, 0 (deterministic) to 1. diffusers' pipelines pass 0 by default.
      timesteps, original_inference_steps, strength: see consistency_timesteps; with
        original_inference_steps all training timesteps are spaced, as in diffusers.
    """

    config: ConsistencyConfig

    def __init__(
        self,
        config: Keys,
        num_inference_steps: int,
        *,
        eta: float = 0.3,
        timesteps: CustomSchedule = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        keys = ConsistencyConfig.from_mapping(config)
        self.config = replace(keys, clip_sample=False, thresholding=False)  # diffusers ignores them
        self._eta = number_option("eta", eta, 0, 1)
        found = consistency_timesteps(
            self.config,
            num_inference_steps,
            timesteps,
            original_inference_steps,
            strength,
            every=original_inference_steps is not None,
        )
        every = self.config.alphas_cumprod()
        scaling = of_alphas_cumprod(every[found.astype(np.int64)], self.config)
        super().__init__(found, scaling)
        next_timesteps = np.append(found[1:], 0.0)
        # in float32, as torch multiplies whole timesteps by a number
        beyond = np.floor(np.float32(1 - self._eta) * next_timesteps.astype(np.float32))
        self._next = every[next_timesteps.astype(np.int64)].tolist()
        self._beyond = every[beyond.astype(np.int64)].tolist()
        self._weights = self._table(self._formula)

    def _formula(self, i: int) -> Combination:
        """Algorithm 4, the strategic stochastic sampling; section 4.2."""
        alpha, sigma = self._scaling.alphas[i], self._scaling.sigmas[i]
        eps = predicted_noise(self.config.prediction_type, alpha, sigma)
        a_beyond = self._beyond[i]
        share = self._next[i] / a_beyond if self.takes_noise(i) else 1.0
        return (
            math.sqrt(share * a_beyond) * ORIGINAL
            + math.sqrt(share * (1 - a_beyond)) * eps
            + math.sqrt(max(0.0, 1 - share)) * NOISE
        )

    def takes_noise(self, i: int) -> bool:
        return self._eta > 0 and i < len(self.timesteps) - 1
