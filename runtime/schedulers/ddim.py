"""DDIM. Source: Song et al. 2020, arXiv 2010.02502."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sdexport.runtime.schedulers.latent_scaling import of_alphas_cumprod, predicted_noise
from sdexport.runtime.schedulers.linear_combination import NOISE, ORIGINAL, Combination
from sdexport.runtime.schedulers.schedule_arguments import number_option
from sdexport.runtime.schedulers.scheduler_base import Scheduler
from sdexport.runtime.schedulers.scheduler_config import ClippingConfig, Keys


@dataclass(frozen=True, kw_only=True)
class DDIMConfig(ClippingConfig):
    """Keys of diffusers' DDIMScheduler."""

    set_alpha_to_one: bool = True


class DDIMScheduler(Scheduler):
    """Denoising diffusion implicit models.

    Args:
      eta: 0 (deterministic) to 1 (as much fresh noise as DDPM).
    """

    config: DDIMConfig

    def __init__(self, config: Keys, num_inference_steps: int, *, eta: float = 0.0) -> None:
        self.config = DDIMConfig.from_mapping(config)
        self._eta = number_option("eta", eta, 0, 1)
        timesteps = np.round(self.config.spaced_timesteps(num_inference_steps))
        every = self.config.alphas_cumprod()
        now = timesteps.astype(np.int64)
        before = now - self.config.num_train_timesteps // num_inference_steps
        super().__init__(timesteps, of_alphas_cumprod(every[now], self.config))
        final = 1.0 if self.config.set_alpha_to_one else float(every[0])
        self._alphas_cumprod: list[float] = every[now].tolist()
        kept_before = np.where(before >= 0, every[np.maximum(before, 0)], final)
        self._alphas_cumprod_prev: list[float] = kept_before.tolist()
        self._weights = self._table(self._formula)

    def _formula(self, i: int) -> Combination:
        """Eq. 12, with the standard deviation of eq. 16."""
        a, a_prev = self._alphas_cumprod[i], self._alphas_cumprod_prev[i]
        eps = predicted_noise(self.config.prediction_type, math.sqrt(a), math.sqrt(1 - a))
        std = self._eta * math.sqrt(max(0.0, (1 - a_prev) / (1 - a) * (1 - a / a_prev)))
        direction = math.sqrt(max(0.0, 1 - a_prev - std**2))
        return math.sqrt(a_prev) * ORIGINAL + direction * eps + std * NOISE

    def takes_noise(self, i: int) -> bool:
        return self._eta > 0
