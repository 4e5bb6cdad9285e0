"""Euler's method. Source: Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.latent_scaling import (
    LatentScaling,
    derivative,
    predicted_original_ve,
    variance_exploding,
)
from sdexport.runtime.schedulers.level_schedules import LEVEL_SCHEDULES
from sdexport.runtime.schedulers.linear_combination import SAMPLE, Combination
from sdexport.runtime.schedulers.schedule_arguments import (
    CustomSchedule,
    custom_schedule,
    number_option,
)
from sdexport.runtime.schedulers.scheduler_base import Scheduler, StepResult
from sdexport.runtime.schedulers.scheduler_config import PREDICTION_TYPES, Keys
from sdexport.runtime.schedulers.sigma_schedules import SigmaConfig, sigma_grid, training_sigmas
from sdexport.runtime.schedulers.step_history import weighted_sum


@dataclass(frozen=True, kw_only=True)
class EulerConfig(SigmaConfig):
    """Keys of diffusers' EulerDiscreteScheduler."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interpolation_type == "log_linear" and self.spaced_by in LEVEL_SCHEDULES:
            raise InvalidArgumentError(
                f"interpolation_type 'log_linear' and schedule '{self.schedule}' exclude each other"
            )


@dataclass(frozen=True)
class Churn:
    """Noise added before each step at a level within low..high. Algorithm 2, lines 4 to 6."""

    amount: float
    low: float
    high: float
    noise: float

    @classmethod
    def of_options(cls, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> Churn:
        """Raises: InvalidArgumentError: a number out of range."""
        return cls(
            number_option("s_churn", s_churn, 0, 1e9),
            number_option("s_tmin", s_tmin, 0, math.inf),
            number_option("s_tmax", s_tmax, 0, math.inf),
            number_option("s_noise", s_noise, 0, 1e9),
        )

    def raised_levels(self, sigmas: np.ndarray, steps: int) -> list[float]:
        """The level to which each step raises the latents, at least its own."""
        most = min(self.amount / (len(sigmas) - 1), math.sqrt(2) - 1)
        levels: list[float] = sigmas[:steps].tolist()
        within = [self.low <= sigma <= self.high for sigma in levels]
        return [s * (most + 1) if inside else s for s, inside in zip(levels, within, strict=True)]


class EulerScheduler(Scheduler):
    """Euler's method over noise levels, with churn if its amount is not 0.

    Args:
      sigmas: (steps + 1 or more,) float64.
      scaling: its `originals` are those at the raised levels.
    """

    def __init__(
        self, timesteps: np.ndarray, sigmas: np.ndarray, scaling: LatentScaling, churn: Churn
    ) -> None:
        self.sigmas = sigmas
        super().__init__(timesteps, scaling, kept=1)
        self._raised = churn.raised_levels(sigmas, len(timesteps))
        self._s_noise = churn.noise
        self._churn = self._table(self._churn_weight)
        self._weights = self._table(self._formula)

    def _churn_weight(self, i: int) -> float:
        """Weight of the noise that raises the latents to sigma_hat. Algorithm 2, line 6."""
        sigma, sigma_hat = float(self.sigmas[i]), self._raised[i]
        return self._s_noise * math.sqrt(max(0.0, sigma_hat**2 - sigma**2))

    def _formula(self, i: int) -> Combination:
        """Algorithm 2, lines 7 and 8, for SAMPLE at the level sigma_hat."""
        sigma_hat, sigma_next = self._raised[i], float(self.sigmas[i + 1])
        slope = derivative(self._scaling.originals[i], sigma_hat)
        return SAMPLE + (sigma_next - sigma_hat) * slope

    def takes_noise(self, i: int) -> bool:
        return self._raised[i] > float(self.sigmas[i])

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """An Euler step, from latents with more noise if there is churn."""
        churn, history = self._churn[i], self._history
        if not churn:
            return super()._step(noise_pred, i, sample, noise)
        raised = weighted_sum(history.kept[0], history.scratch, (churn, noise), (1.0, sample))
        original, w = self._original(noise_pred, i, raised), self._weights[i]
        return StepResult(history.sum((w.sample, raised), (w.noise_pred, noise_pred)), original)


class EulerDiscreteScheduler(EulerScheduler):
    """Euler's method over the noise levels of the training.

    Args:
      timesteps: the caller's own falling timesteps, in place of spaced ones.
      sigmas: the caller's own falling noise levels, one more than steps, in place of either.
      s_churn, s_tmin, s_tmax, s_noise: the noise added before a step, 0 or more; see algorithm 2.
    """

    config: EulerConfig

    def __init__(
        self,
        config: Keys,
        num_inference_steps: int,
        *,
        timesteps: CustomSchedule = None,
        sigmas: CustomSchedule = None,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ) -> None:
        self.config = EulerConfig.from_mapping(config)
        found, levels = _grid(self.config, num_inference_steps, timesteps, sigmas)
        churn = Churn.of_options(s_churn, s_tmin, s_tmax, s_noise)
        scaling = variance_exploding(levels, self.config)
        if churn.amount and self.config.prediction_type == "epsilon":
            raised = churn.raised_levels(levels, len(found))
            originals = [predicted_original_ve("epsilon", sigma) for sigma in raised]
            scaling = replace(scaling, originals=originals)
        super().__init__(found, levels, scaling, churn)


def _grid(
    config: EulerConfig, steps: int, timesteps: CustomSchedule, sigmas: CustomSchedule
) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps (steps,) and noise levels (steps + 1,) or, log-linear, one more."""
    every = training_sigmas(config)
    continuous = (config.timestep_type, config.prediction_type) == ("continuous", "v_prediction")
    if timesteps is not None and (sigmas is not None or continuous):
        other = "sigmas" if sigmas is not None else "timestep_type 'continuous'"
        raise InvalidArgumentError(f"timesteps and {other} exclude each other")
    if sigmas is not None:
        config.check_steps(steps)
        if config.schedule:
            raise InvalidArgumentError("sigmas and schedule exclude each other")
        levels = custom_schedule("sigmas", sigmas, 1e9, length=steps + 1)
        found = noise_schedules.sigma_to_timestep(levels[:-1], every)
    else:
        found, levels = sigma_grid(config, every, steps, timesteps)
        if config.interpolation_type == "log_linear":
            found, levels = _log_linear(config, every, found, steps)
        last = float(every[0]) if config.final_sigmas_type == "sigma_min" else 0.0
        levels = np.append(levels, last)
    if continuous:
        found = 0.25 * np.log(levels[: len(found)])
    return found, levels


def _log_linear(
    config: EulerConfig, every: np.ndarray, timesteps: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """interpolation_type "log_linear": levels from the first to the last of the training."""
    levels = noise_schedules.exponential_sigmas(float(every[0]), float(every[-1]), steps + 1)
    if not config.spaced_by:
        return timesteps, levels
    levels = config.spaced_sigmas(float(levels[-1]), float(levels[0]), steps)
    return noise_schedules.sigma_to_timestep(levels, every), levels
