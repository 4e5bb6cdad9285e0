"""DDIM. Source: Song et al. 2020, arXiv 2010.02502."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime import schedules
from runtime.schedulers.common import ScheduleConfig, StepResult, check_step


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

    def __init__(
        self, config: Mapping[str, Any], num_inference_steps: int, *, eta: float = 0.0
    ) -> None:
        self.config = DDIMConfig.from_mapping(config)
        train_steps = self.config.num_train_timesteps
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be between 0 and 1, got {eta}")
        self._eta = eta
        self.timesteps = np.round(
            schedules.spaced_timesteps(
                self.config.timestep_spacing,
                num_inference_steps,
                train_steps,
                self.config.steps_offset,
            )
        )
        kept = schedules.alphas_cumprod(
            self.config.betas(), zero_terminal_snr=self.config.rescale_betas_zero_snr
        )
        final = 1.0 if self.config.set_alpha_to_one else float(kept[0])
        now = self.timesteps.astype(np.int64)
        if now.min() < 0 or now.max() >= train_steps:
            raise ValueError(
                f"steps_offset {self.config.steps_offset} leads to timestep {now.max()}, "
                f"beyond the {train_steps} training steps"
            )
        before = now - train_steps // num_inference_steps
        self._alpha = kept[now]
        self._alpha_prev = np.where(before >= 0, kept[np.maximum(before, 0)], final)

    init_noise_sigma = 1.0

    @property
    def takes_noise(self) -> bool:
        return self._eta > 0

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one DDIM step.

        Args:
          noise_pred: (B, C, H/8, W/8), the guided prediction of the UNet.
          i: step index, 0 <= i < len(timesteps).
          sample: (B, C, H/8, W/8) latents before the step.
          noise: of the same shape, standard normal; needed if eta > 0.
        Returns: StepResult, same shape and dtype as sample.
        Raises: ValueError: shapes differ, index out of range, or noise is missing.
        Source: DDIM, arXiv 2010.02502, eq. 12 and 16; v: arXiv 2202.00512, appendix D.
        """
        check_step("DDIM", noise_pred, i, sample, len(self.timesteps))
        alpha, alpha_prev = float(self._alpha[i]), float(self._alpha_prev[i])
        signal, spread = math.sqrt(alpha), math.sqrt(1 - alpha)
        if self.config.prediction_type == "epsilon":
            epsilon = noise_pred
            original = (sample - spread * epsilon) / signal
        elif self.config.prediction_type == "v_prediction":
            original = signal * sample - spread * noise_pred
            epsilon = signal * noise_pred + spread * sample
        else:
            original = noise_pred
            epsilon = (sample - signal * original) / spread
        original = self._limited(original)
        deviation = 0.0
        if self._eta:
            deviation = self._eta * math.sqrt(
                (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
            )
        direction = math.sqrt(max(0.0, 1 - alpha_prev - deviation**2))
        prev = math.sqrt(alpha_prev) * original + direction * epsilon
        if self._eta:
            if noise is None:
                raise ValueError("DDIM: eta > 0 needs noise")
            prev += deviation * noise
        return StepResult(prev, original)

    def _limited(self, original: np.ndarray) -> np.ndarray:
        """Clip the clean latents, or threshold them by percentile (arXiv 2205.11487, sec. 2.3)."""
        config = self.config
        if config.thresholding:
            flat = original.reshape(len(original), -1)
            limit = np.quantile(np.abs(flat), config.dynamic_thresholding_ratio, axis=1)
            limit = np.clip(limit, 1.0, config.sample_max_value).astype(original.dtype)[:, None]
            return np.asarray(np.clip(flat, -limit, limit) / limit).reshape(original.shape)
        if config.clip_sample:
            reach = config.clip_sample_range
            return np.asarray(np.clip(original, -reach, reach))
        return original

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """Source: DDPM, arXiv 2006.11239, eq. 4."""
        alpha = float(self._alpha[i])
        return math.sqrt(alpha) * original + math.sqrt(1 - alpha) * noise
