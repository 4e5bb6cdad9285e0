"""DDPM's ancestral sampling. Source: Ho et al. 2020, arXiv 2006.11239."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.runtime.schedulers.latent_scaling import of_alphas_cumprod
from sdexport.runtime.schedulers.linear_combination import NOISE, ORIGINAL, SAMPLE, Combination
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule, custom_schedule
from sdexport.runtime.schedulers.scheduler_base import Scheduler
from sdexport.runtime.schedulers.scheduler_config import ClippingConfig, Keys, check_variance_type


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(ClippingConfig):
    """Keys of diffusers' DDPMScheduler."""

    variance_type: str = "fixed_small"

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
    }

    def __post_init__(self) -> None:
        check_variance_type(self.variance_type)
        super().__post_init__()


class DDPMScheduler(Scheduler):
    """Denoising diffusion probabilistic models: noise is added in every step but the last.

    Args:
      timesteps: the caller's own whole timesteps, falling, in place of spaced ones.
    """

    config: DDPMConfig

    def __init__(
        self, config: Keys, num_inference_steps: int, *, timesteps: CustomSchedule = None
    ) -> None:
        self.config = DDPMConfig.from_mapping(config)
        steps = self.config.check_steps(num_inference_steps)
        if timesteps is None:
            found = np.round(self.config.spaced_timesteps(steps))
        else:
            train_steps = self.config.num_train_timesteps
            found = custom_schedule("timesteps", timesteps, train_steps, whole=True, length=steps)
        kept = self.config.alphas_cumprod()[found.astype(np.int64)]
        super().__init__(found, of_alphas_cumprod(kept, self.config))
        self._alphas_cumprod: list[float] = [*kept.tolist(), 1.0]
        self._weights = self._table(self._formula)

    def _formula(self, i: int) -> Combination:
        """Eq. 7, the mean of the posterior, and its variance, section 3.2."""
        a, a_prev = self._alphas_cumprod[i : i + 2]
        beta = 1 - a / a_prev
        variance = max((1 - a_prev) / (1 - a) * beta, 1e-20)
        if self.config.variance_type.startswith("fixed_large"):
            variance = beta
        mean = (
            math.sqrt(a_prev) * beta / (1 - a) * ORIGINAL
            + math.sqrt(a / a_prev) * (1 - a_prev) / (1 - a) * SAMPLE
        )
        return mean + math.sqrt(variance) * NOISE if self.takes_noise(i) else mean

    def takes_noise(self, i: int) -> bool:
        return bool(self.timesteps[i] > 0)
