"""Euler's method and its ancestral form.

Source: Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2; k-diffusion's ancestral sampler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.common import (
    Memory,
    Original,
    StepResult,
    check_step,
    later,
    require_finite,
    slope_weights,
    ve_original_weights,
)
from sdexport.runtime.schedulers.config import (
    PREDICTION_TYPES,
    ScheduleConfig,
    custom_schedule,
    number_option,
)
from sdexport.runtime.schedulers.sigmas import (
    SpreadConfig,
    ancestral_split,
    input_scales,
    sigma_grid,
    start_sigma,
    training_sigmas,
)


@dataclass(frozen=True, kw_only=True)
class EulerConfig(SpreadConfig):
    interpolation_type: str = "linear"
    timestep_type: str = "discrete"
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: str = "zero"

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction_type": (*PREDICTION_TYPES, "original_sample"),
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }


class EulerDiscreteScheduler:
    """Euler's method over the noise levels, with churn if it is asked for.

    Args:
      config: keys of diffusers' EulerDiscreteScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps.
      timesteps: own falling timesteps instead of spaced ones.
      sigmas: own falling noise levels, one more than steps, instead of either.
      s_churn, s_tmin, s_tmax, s_noise: noise that is added before a step, algorithm 2.
    Raises: ValueError: a value out of range.
    """

    order = 1

    def __init__(
        self,
        config: Mapping[str, Any],
        num_inference_steps: int,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ) -> None:
        self.config = EulerConfig.from_mapping(config)
        self.timesteps, self.sigmas = _euler_grid(
            self.config, num_inference_steps, timesteps, sigmas
        )
        churn = number_option("s_churn", s_churn, 0, 1e9)
        low, high = (
            number_option("s_tmin", s_tmin, 0, math.inf),
            number_option("s_tmax", s_tmax, 0, math.inf),
        )
        most = min(churn / (len(self.sigmas) - 1), math.sqrt(2) - 1)
        churned = [most if low <= sigma <= high else 0.0 for sigma in self.sigmas]
        spread = number_option("s_noise", s_noise, 0, 1e9)
        self._weights = [
            (spread * sigma * math.sqrt((gamma + 1) ** 2 - 1), *self._step_weights(i, gamma))
            for i, (sigma, gamma) in enumerate(zip(self.sigmas.tolist(), churned, strict=True))
            if i < len(self.timesteps)
        ]
        require_finite("EulerDiscreteScheduler", self._weights)
        self._scales = input_scales(self.sigmas)
        self._memory = Memory(1)

    @property
    def init_noise_sigma(self) -> float:
        return start_sigma(self.config, self.sigmas)

    def _step_weights(self, i: int, gamma: float) -> tuple[float, ...]:
        """Of (sample, noise_pred) in the clean latents, then in the next ones."""
        sigma, goal = float(self.sigmas[i]), float(self.sigmas[i + 1])
        raised = sigma * (gamma + 1)
        kind = self.config.prediction_type.removeprefix("original_")
        seen = ve_original_weights(kind, raised if kind == "epsilon" else sigma)
        same, predicted = slope_weights(seen, raised)
        return (*seen, 1 + (goal - raised) * same, (goal - raised) * predicted)

    def takes_noise(self, i: int) -> bool:
        return bool(self._weights[i][0] > 0)

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample * self._scales[i]

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one Euler step; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory, (fresh, a, b, same, predicted) = self._memory, self._weights[i]
        memory.start(i, sample)
        if fresh and noise is not None:
            raised = memory.push()
            np.multiply(noise, fresh, raised)
            sample = np.add(raised, sample, raised)
            original: Original = memory.sum((a, sample), (b, noise_pred))
        else:
            original = later((a, sample), (b, noise_pred))
        return StepResult(memory.sum((same, sample), (predicted, noise_pred)), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        return original + float(self.sigmas[i]) * noise


def _euler_grid(
    config: EulerConfig,
    steps: int,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps (steps,) and noise levels (steps + 1,) or, log-linear, one more."""
    every = training_sigmas(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    continuous = (config.timestep_type, config.prediction_type) == ("continuous", "v_prediction")
    if timesteps is not None and (sigmas is not None or continuous):
        other = "sigmas" if sigmas is not None else "timestep_type 'continuous'"
        raise ValueError(f"timesteps and {other} exclude each other")
    if sigmas is not None:
        config.check_steps(steps)
        levels = custom_schedule("sigmas", sigmas, 1e9, length=steps + 1)
        found = noise_schedules.sigma_to_timestep(levels[:-1], every)
    else:
        found, levels = sigma_grid(config, every, steps, timesteps)
        if config.interpolation_type == "log_linear":
            levels = noise_schedules.exponential_sigmas(
                float(every[0]), float(every[-1]), steps + 1
            )
            if config.is_spread:
                levels = config.spread(float(levels[-1]), float(levels[0]), steps)
                found = noise_schedules.sigma_to_timestep(levels, every)
        last = float(every[0]) if config.final_sigmas_type == "sigma_min" else 0.0
        levels = np.append(levels, last)
    if continuous:
        found = 0.25 * np.log(levels[: len(found)])
    return found, levels


@dataclass(frozen=True, kw_only=True)
class EulerAncestralConfig(ScheduleConfig):
    timestep_spacing: str = "linspace"
    rescale_betas_zero_snr: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction_type": ("epsilon", "v_prediction")
    }


class EulerAncestralDiscreteScheduler:
    """Euler's method to a lower level, and fresh noise back up, in every step.

    Args:
      config: keys of diffusers' EulerAncestralDiscreteScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps.
    Raises: ValueError: a value out of range.
    """

    order = 1

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        self.config = EulerAncestralConfig.from_mapping(config)
        every = training_sigmas(self.config, zero_terminal_snr=self.config.rescale_betas_zero_snr)
        self.timesteps = noise_schedules.spaced_timesteps(
            self.config.timestep_spacing,
            self.config.check_steps(num_inference_steps),
            len(every),
            self.config.steps_offset,
        )
        self.sigmas = np.append(np.interp(self.timesteps, np.arange(len(every)), every), 0.0)
        self._weights = []
        for sigma, goal in zip(self.sigmas[:-1].tolist(), self.sigmas[1:].tolist(), strict=True):
            down, added = ancestral_split(sigma, goal)
            seen = ve_original_weights(self.config.prediction_type, sigma)
            same, predicted = slope_weights(seen, sigma)
            width = down - sigma
            self._weights.append((*seen, 1 + width * same, width * predicted, added))
        require_finite("EulerAncestralDiscreteScheduler", self._weights)
        self._scales = input_scales(self.sigmas)
        self._memory = Memory()

    @property
    def init_noise_sigma(self) -> float:
        return start_sigma(self.config, self.sigmas)

    def takes_noise(self, i: int) -> bool:
        """Always; in the last step the noise is drawn for nothing, as in diffusers."""
        return True

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample * self._scales[i]

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one ancestral step; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory, (a, b, same, predicted, added) = self._memory, self._weights[i]
        memory.start(i, sample)
        original = later((a, sample), (b, noise_pred))
        terms = [(same, sample), (predicted, noise_pred)]
        if noise is not None:
            terms.append((added, noise))
        return StepResult(memory.sum(*terms), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        return original + float(self.sigmas[i]) * noise
