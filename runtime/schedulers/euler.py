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
    derivative,
    predicted_original_ve,
    variance_exploding,
)
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


class EulerDiscreteScheduler(Scheduler):
    """Euler's method over the noise levels, with churn if `s_churn` is not 0.

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
        found, self.sigmas = _grid(self.config, num_inference_steps, timesteps, sigmas)
        churn = number_option("s_churn", s_churn, 0, 1e9)
        low = number_option("s_tmin", s_tmin, 0, math.inf)
        high = number_option("s_tmax", s_tmax, 0, math.inf)
        most = min(churn / (len(self.sigmas) - 1), math.sqrt(2) - 1)
        levels = self.sigmas[: len(found)].tolist()
        self._gammas = [most if low <= sigma <= high else 0.0 for sigma in levels]
        self._s_noise = number_option("s_noise", s_noise, 0, 1e9)
        scaling = variance_exploding(self.sigmas, self.config)
        if churn and self.config.prediction_type == "epsilon":  # the noise of the raised level
            raised = map(self._sigma_hat, range(len(found)))
            originals = [predicted_original_ve("epsilon", sigma) for sigma in raised]
            scaling = replace(scaling, originals=originals)
        super().__init__(found, scaling, kept=1)
        self._churn = self._table(self._churn_weight)
        self._weights = self._table(self._formula)

    def _sigma_hat(self, i: int) -> float:
        """The noise level that churn raises step i to. Algorithm 2, line 5."""
        return float(self.sigmas[i]) * (self._gammas[i] + 1)

    def _churn_weight(self, i: int) -> float:
        """Weight of the noise that raises the latents to sigma_hat. Algorithm 2, line 6."""
        return self._s_noise * float(self.sigmas[i]) * math.sqrt((self._gammas[i] + 1) ** 2 - 1)

    def _formula(self, i: int) -> Combination:
        """Algorithm 2, lines 7 and 8, for SAMPLE at the level sigma_hat."""
        sigma_hat, sigma_next = self._sigma_hat(i), float(self.sigmas[i + 1])
        slope = derivative(self._scaling.originals[i], sigma_hat)
        return SAMPLE + (sigma_next - sigma_hat) * slope

    def takes_noise(self, i: int) -> bool:
        return self._churn[i] > 0

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
    if not config.sigma_schedule:
        return timesteps, levels
    levels = config.spaced_sigmas(float(levels[-1]), float(levels[0]), steps)
    return noise_schedules.sigma_to_timestep(levels, every), levels
