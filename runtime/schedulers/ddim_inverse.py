"""DDIM from clean latents to noise. Source: Song et al. 2020, DDIM, arXiv 2010.02502, sec. 4.3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.runtime.schedulers.latent_scaling import of_alphas_cumprod, predicted_noise
from sdexport.runtime.schedulers.linear_combination import ORIGINAL, Combination
from sdexport.runtime.schedulers.scheduler_base import Scheduler
from sdexport.runtime.schedulers.scheduler_config import Keys, SchedulerConfig


@dataclass(frozen=True, kw_only=True)
class DDIMInverseConfig(SchedulerConfig):
    """Keys of diffusers' DDIMInverseScheduler."""

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"timestep_spacing": ("leading", "trailing")}


class DDIMInverseScheduler(Scheduler):
    """DDIM's steps upwards: each from a noise level to that of its own timestep."""

    inverts = True
    config: DDIMInverseConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        self.config = DDIMInverseConfig.from_mapping(config)
        timesteps = np.round(self.config.spaced_timesteps(num_inference_steps))[::-1].copy()
        every = self.config.alphas_cumprod()
        initial = 1.0 if self.config.set_alpha_to_one else float(every[0])
        after = timesteps.astype(np.int64)
        now = after - self.config.num_train_timesteps // num_inference_steps
        kept = np.where(now >= 0, every[np.maximum(now, 0)], initial)
        super().__init__(timesteps, of_alphas_cumprod(kept, self.config))
        self._alphas_cumprod: list[float] = kept.tolist()
        self._alphas_cumprod_next: list[float] = every[after].tolist()
        self._weights = self._table(self._formula)

    def _formula(self, i: int) -> Combination:
        """Eq. 12 without noise, with the two levels exchanged."""
        a, a_next = self._alphas_cumprod[i], self._alphas_cumprod_next[i]
        eps = predicted_noise(self.config.prediction_type, math.sqrt(a), math.sqrt(1 - a))
        return math.sqrt(a_next) * ORIGINAL + math.sqrt(1 - a_next) * eps
