"""DDPM's ancestral sampling. Source: Ho et al. 2020, arXiv 2006.11239."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.common import (
    Memory,
    StepResult,
    check_step,
    limit,
    original_weights,
    require_finite,
)
from sdexport.runtime.schedulers.config import ScheduleConfig, custom_schedule


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(ScheduleConfig):
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    rescale_betas_zero_snr: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
    }

    def __post_init__(self) -> None:
        if self.variance_type in ("learned", "learned_range"):
            raise ValueError(
                f"variance_type '{self.variance_type}' needs a UNet that predicts variances; "
                "Stable Diffusion's do not"
            )
        super().__post_init__()


class DDPMScheduler:
    """Denoising diffusion probabilistic models: noise is added in every step but the last.

    Args:
      config: keys of diffusers' DDPMScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps.
      timesteps: own whole timesteps, falling, instead of spaced ones.
    Raises: ValueError: a value out of range.
    """

    init_noise_sigma = 1.0
    order = 1

    def __init__(
        self,
        config: Mapping[str, Any],
        num_inference_steps: int,
        *,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        self.config = DDPMConfig.from_mapping(config)
        train_steps = self.config.num_train_timesteps
        steps = self.config.check_steps(num_inference_steps)
        if timesteps is not None:
            self.timesteps = custom_schedule(
                "timesteps", timesteps, train_steps, whole=True, length=steps
            )
        else:
            self.timesteps = np.round(
                noise_schedules.spaced_timesteps(
                    self.config.timestep_spacing, steps, train_steps, self.config.steps_offset
                )
            )
        kept = noise_schedules.alphas_cumprod(
            self.config.betas(), zero_terminal_snr=self.config.rescale_betas_zero_snr
        )[self.timesteps.astype(np.int64)]
        self._alpha, self._sigma = np.sqrt(kept), np.sqrt(1 - kept)
        self._weights = [
            self._step_weights(float(now), float(before))
            for now, before in zip(kept, np.append(kept[1:], 1.0), strict=True)
        ]
        require_finite("DDPMScheduler", self._weights)
        self._memory = Memory()

    def _step_weights(self, now: float, before: float) -> tuple[float, ...]:
        """Of (sample, noise_pred) in the clean latents, then of (clean, sample, noise).

        Source: eq. 7 and section 3.2.
        """
        kind = self.config.prediction_type
        beta, spread = 1 - now / before, 1 - now
        variance = max((1 - before) / spread * beta, 1e-20)
        if self.config.variance_type.startswith("fixed_large"):
            variance = beta
        return (
            *original_weights(kind, math.sqrt(now), math.sqrt(spread)),
            math.sqrt(before) * beta / spread,
            math.sqrt(now / before) * (1 - before) / spread,
            math.sqrt(variance),
        )

    def takes_noise(self, i: int) -> bool:
        return bool(self.timesteps[i] > 0)

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one ancestral step; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory, (a, b, clean, same, fresh) = self._memory, self._weights[i]
        memory.start(i, sample)
        original = memory.sum((a, sample), (b, noise_pred))
        limit(original, memory.scratch, self.config)
        terms = [(clean, original), (same, sample)]
        if noise is not None and self.takes_noise(i):
            terms.append((fresh, noise))
        return StepResult(memory.sum(*terms), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """Source: eq. 4."""
        return float(self._alpha[i]) * original + float(self._sigma[i]) * noise
