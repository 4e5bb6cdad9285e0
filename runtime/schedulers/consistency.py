"""Samplers of consistency-distilled models: LCM and TCD.

Source: Luo et al. 2023, arXiv 2310.04378; Zheng et al. 2024, arXiv 2402.19159.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.common import (
    Memory,
    StepResult,
    check_step,
    combine,
    epsilon_weights,
    limit,
    original_weights,
    require_finite,
)
from sdexport.runtime.schedulers.config import (
    ScheduleConfig,
    custom_schedule,
    is_whole,
    number_option,
)

SIGMA_DATA = 0.5


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(ScheduleConfig):
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_scaling: float = 10.0
    rescale_betas_zero_snr: bool = False


class LCMScheduler:
    """Jumps to clean latents and adds noise for the next timestep, in all steps but the last.

    `pred_original_sample` is what diffusers calls `denoised`: it has the boundary condition in it.

    Args:
      config: keys of diffusers' LCMScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= original_inference_steps * strength.
      timesteps: own whole timesteps, falling, instead of spaced ones.
      original_inference_steps: of the distillation, in the place of the configuration's.
      strength: share of the distilled timesteps in use, from the cleanest; for image to image.
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
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        self.config = ConsistencyConfig.from_mapping(config)
        self.timesteps = _timesteps(
            self.config, num_inference_steps, timesteps, original_inference_steps, strength
        )
        kept = _kept(self.config)[self.timesteps.astype(np.int64)]
        self._alpha, self._sigma = np.sqrt(kept), np.sqrt(1 - kept)
        self._weights = [self._step_weights(i) for i in range(len(kept))]
        require_finite("LCMScheduler", self._weights)
        self._memory = Memory(1)

    def _step_weights(self, i: int) -> tuple[float, ...]:
        """Of (sample, noise_pred), then (clean, sample), then (denoised, noise).

        Source: 2310.04378, eq. 9 and section 4.1; arXiv 2303.01469, appendix C.
        """
        alpha, sigma = float(self._alpha[i]), float(self._sigma[i])
        time = float(self.timesteps[i]) * self.config.timestep_scaling
        reach = math.hypot(time, SIGMA_DATA)
        last = i == len(self.timesteps) - 1
        after = (1.0, 0.0) if last else (float(self._alpha[i + 1]), float(self._sigma[i + 1]))
        seen = original_weights(self.config.prediction_type, alpha, sigma)
        return (*seen, time / reach, (SIGMA_DATA / reach) ** 2, *after)

    def takes_noise(self, i: int) -> bool:
        return i < len(self.timesteps) - 1

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Jump to clean latents and back to the next timestep; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory, (a, b, clean, same, kept, fresh) = self._memory, self._weights[i]
        memory.start(i, sample)
        seen = memory.sum((a, sample), (b, noise_pred))
        limit(seen, memory.scratch, self.config)
        denoised = combine(seen, memory.scratch, (clean, seen), (same, sample))
        terms = [(kept, denoised)]
        if noise is not None and self.takes_noise(i):
            terms.append((fresh, noise))
        return StepResult(memory.sum(*terms), denoised)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """Source: DDPM, arXiv 2006.11239, eq. 4."""
        return float(self._alpha[i]) * original + float(self._sigma[i]) * noise


class TCDScheduler:
    """Goes beyond the next timestep, by as much as eta says, and back up to it with noise.

    Args:
      config: keys of diffusers' TCDScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= original_inference_steps * strength.
      eta: the paper's gamma, 0 (deterministic) to 1. diffusers' pipelines pass 0 by default.
      timesteps: own whole timesteps, falling, instead of spaced ones.
      original_inference_steps: if given, all training timesteps are spread over, as in diffusers.
      strength: share of the distilled timesteps in use, from the cleanest; for image to image.
    Raises: ValueError: a value out of range.
    """

    init_noise_sigma = 1.0
    order = 1

    def __init__(
        self,
        config: Mapping[str, Any],
        num_inference_steps: int,
        *,
        eta: float = 0.3,
        timesteps: Sequence[float] | None = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        self.config = ConsistencyConfig.from_mapping(config)
        self._eta = number_option("eta", eta, 0, 1)
        self.timesteps = _timesteps(
            self.config,
            num_inference_steps,
            timesteps,
            original_inference_steps,
            strength,
            every=original_inference_steps is not None,
        )
        every = _kept(self.config)
        kept = every[self.timesteps.astype(np.int64)]
        self._alpha, self._sigma = np.sqrt(kept), np.sqrt(1 - kept)
        goals = np.append(self.timesteps[1:], 0.0)
        # in float32, as torch multiplies whole timesteps by a number
        beyond = np.floor(np.float32(1 - self._eta) * goals.astype(np.float32)).astype(np.int64)
        self._weights = [
            self._step_weights(i, float(every[int(goal)]), float(every[low]))
            for i, (goal, low) in enumerate(zip(goals, beyond, strict=True))
        ]
        require_finite("TCDScheduler", self._weights)
        self._memory = Memory()

    def _step_weights(self, i: int, goal: float, beyond: float) -> tuple[float, ...]:
        """Of (sample, noise_pred) in the clean latents, then of (clean, sample, noise_pred, noise).

        Source: 2402.19159, section 4.2 and algorithm 4.
        """
        kind, alpha, sigma = self.config.prediction_type, self._alpha[i], self._sigma[i]
        share = goal / beyond if self.takes_noise(i) else 1.0
        spread = math.sqrt(share * (1 - beyond))
        of_sample, of_prediction = epsilon_weights(kind, float(alpha), float(sigma))
        return (
            *original_weights(kind, float(alpha), float(sigma)),
            math.sqrt(share * beyond),
            spread * of_sample,
            spread * of_prediction,
            math.sqrt(max(0.0, 1 - share)),
        )

    def takes_noise(self, i: int) -> bool:
        return self._eta > 0 and i < len(self.timesteps) - 1

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one step of TCD; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory, (a, b, clean, same, predicted, fresh) = self._memory, self._weights[i]
        memory.start(i, sample)
        original = memory.sum((a, sample), (b, noise_pred))
        terms = [(clean, original), (same, sample), (predicted, noise_pred)]
        if noise is not None and self.takes_noise(i):
            terms.append((fresh, noise))
        return StepResult(memory.sum(*terms), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """Source: DDPM, arXiv 2006.11239, eq. 4."""
        return float(self._alpha[i]) * original + float(self._sigma[i]) * noise


def _kept(config: ConsistencyConfig) -> np.ndarray:
    return noise_schedules.alphas_cumprod(
        config.betas(), zero_terminal_snr=config.rescale_betas_zero_snr
    )


def _timesteps(
    config: ConsistencyConfig,
    steps: int,
    timesteps: Sequence[float] | None,
    original_steps: int | None,
    strength: float,
    *,
    every: bool = False,
) -> np.ndarray:
    """Some of the timesteps of the distillation, highest first, evenly picked.

    Args:
      every: pick from all training timesteps instead.
    """
    config.check_steps(steps)
    train_steps = config.num_train_timesteps
    count = config.original_inference_steps if original_steps is None else original_steps
    if not is_whole(count) or not 1 <= count <= train_steps:
        raise ValueError(f"original_inference_steps must be 1 to {train_steps}, got {count!r}")
    share = number_option("strength", strength, 0, 1)
    if timesteps is not None:
        if share != 1:
            raise ValueError(
                "timesteps: begin the list where strength would; give one or the other"
            )
        return custom_schedule("timesteps", timesteps, train_steps, whole=True, length=steps)
    if every:
        taught = np.arange(int(train_steps * share))
    else:
        taught = np.arange(1, int(count * share) + 1) * (train_steps // count) - 1
    if steps > min(len(taught), count):
        raise ValueError(
            f"num_inference_steps must be 1 to {min(len(taught), count)} "
            f"(original_inference_steps {count} at strength {share:g}), got {steps}"
        )
    picked = np.floor(np.linspace(0, len(taught), num=steps, endpoint=False)).astype(np.int64)
    return np.asarray(taught[::-1][picked].astype(np.float64))
