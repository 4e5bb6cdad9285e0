"""DDIM. Source: Song et al. 2020, arXiv 2010.02502."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.common import (
    Memory,
    StepResult,
    check_step,
    epsilon_weights,
    limit,
    original_weights,
    require_finite,
)
from sdexport.runtime.schedulers.config import ScheduleConfig, number_option


@dataclass(frozen=True, kw_only=True)
class DDIMConfig(ScheduleConfig):
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    rescale_betas_zero_snr: bool = False


class DDIMScheduler:
    """Denoising diffusion implicit models.

    Args:
      config: keys of diffusers' DDIMScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps.
      eta: 0 is deterministic, 1 adds as much fresh noise as DDPM.
    Raises: ValueError: a value out of range.
    """

    init_noise_sigma = 1.0
    order = 1

    def __init__(
        self, config: Mapping[str, Any], num_inference_steps: int, *, eta: float = 0.0
    ) -> None:
        self.config = DDIMConfig.from_mapping(config)
        self._eta = number_option("eta", eta, 0, 1)
        train_steps = self.config.num_train_timesteps
        steps = self.config.check_steps(num_inference_steps)
        self.timesteps = np.round(
            noise_schedules.spaced_timesteps(
                self.config.timestep_spacing, steps, train_steps, self.config.steps_offset
            )
        )
        kept = noise_schedules.alphas_cumprod(
            self.config.betas(), zero_terminal_snr=self.config.rescale_betas_zero_snr
        )
        final = 1.0 if self.config.set_alpha_to_one else float(kept[0])
        now = self.timesteps.astype(np.int64)
        before = now - train_steps // steps
        self._alpha = np.sqrt(kept[now])
        self._sigma = np.sqrt(1 - kept[now])
        kept_before = np.where(before >= 0, kept[np.maximum(before, 0)], final)
        self._weights = [
            self._step_weights(float(a), float(b))
            for a, b in zip(kept[now], kept_before, strict=True)
        ]
        require_finite("DDIMScheduler", self._weights)
        self._memory = Memory()

    def _step_weights(self, kept: float, before: float) -> tuple[float, ...]:
        """Of (sample, noise_pred) in the clean latents, then of (clean, sample, noise_pred, noise).

        Source: eq. 12 and 16.
        """
        alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
        kind = self.config.prediction_type
        deviation = self._eta * math.sqrt(max(0.0, (1 - before) / (1 - kept) * (1 - kept / before)))
        direction = math.sqrt(max(0.0, 1 - before - deviation**2))
        of_sample, of_prediction = epsilon_weights(kind, alpha, sigma)
        return (
            *original_weights(kind, alpha, sigma),
            math.sqrt(before),
            direction * of_sample,
            direction * of_prediction,
            deviation,
        )

    def takes_noise(self, i: int) -> bool:
        return self._eta > 0

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one DDIM step; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory, (a, b, clean, same, predicted, fresh) = self._memory, self._weights[i]
        memory.start(i, sample)
        original = memory.sum((a, sample), (b, noise_pred))
        limit(original, memory.scratch, self.config)
        terms = [(clean, original), (same, sample), (predicted, noise_pred)]
        if noise is not None:
            terms.append((fresh, noise))
        return StepResult(memory.sum(*terms), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """Source: DDPM, arXiv 2006.11239, eq. 4."""
        return float(self._alpha[i]) * original + float(self._sigma[i]) * noise
