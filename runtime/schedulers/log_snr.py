"""The base of the solvers that step in log-SNR: configuration, noise levels, exponential integrals.

Latents are alpha x0 + sigma noise with alpha**2 + sigma**2 = 1; lambda = log(alpha / sigma).
Source: DPM-Solver, arXiv 2206.00927; DPM-Solver++, arXiv 2211.01095.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.latent_scaling import (
    LatentScaling,
    predicted_noise,
    variance_preserving,
)
from sdexport.runtime.schedulers.level_schedules import LEVEL_SCHEDULES
from sdexport.runtime.schedulers.linear_combination import Combination
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule, custom_schedule
from sdexport.runtime.schedulers.scheduler_base import Scheduler, StepResult
from sdexport.runtime.schedulers.scheduler_config import SchedulerConfig
from sdexport.runtime.schedulers.sigma_schedules import SigmaConfig, single_sigmas, training_sigmas
from sdexport.runtime.schedulers.step_history import Term, weighted_sum


@dataclass(frozen=True, kw_only=True)
class LogSNRConfig(SigmaConfig):
    """Keys of all solvers in log-SNR."""

    solver_order: int = 2
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    lower_order_final: bool = True

    # keys of some of these solvers only
    lambda_min_clipped = -math.inf
    use_lu_lambdas = False

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"solver_order": (1, 3)}

    @property
    def spaced_by(self) -> str | None:
        """As in SigmaConfig; Lu's lambdas come before exponential sigmas."""
        if self.use_lu_lambdas and not (self.use_karras_sigmas or self.schedule):
            return "lu"
        return super().spaced_by

    def spaced_sigmas(self, low: float, high: float, steps: int) -> np.ndarray:
        """As in SigmaConfig; sigma_min and sigma_max do not limit Lu's lambdas."""
        if self.spaced_by == "lu":
            return noise_schedules.exponential_sigmas(low, high, steps)
        return super().spaced_sigmas(low, high, steps)


class Level(NamedTuple):
    """One noise level."""

    alpha: float
    sigma: float
    log_snr: float


class SolverWeights(NamedTuple):
    """Weights of one step: of the latents, the remembered predictions, newest first, and noise."""

    sample: float
    past: tuple[float, ...]
    noise: float = 0.0


class LogSNRScheduler(Scheduler):
    """A multistep solver: the weighted sum of the latents, of its last predictions and of noise.

    A subclass defines `_solver_weights` and `_highest_order`. Its predictions are clean latents, or
    noise if `predicts_noise`.

    Args:
      timesteps, levels: from log_snr_grid.
      scaling: how latents hold signal and noise; default variance-preserving, from the levels.
    """

    config: SchedulerConfig

    def __init__(
        self,
        timesteps: np.ndarray,
        levels: Sequence[Level],
        *,
        predicts_noise: bool,
        remembered: int,
        kept: int = 1,
        scaling: LatentScaling | None = None,
    ) -> None:
        self._levels = levels
        if scaling is None:
            alphas, sigmas, _ = zip(*levels[:-1], strict=True)
            scaling = variance_preserving(alphas, sigmas, self.config)
        super().__init__(timesteps, scaling, remembered=remembered, kept=kept)
        self._predicts_noise = predicts_noise
        self._noises = self._table(self._predicted_noise) if predicts_noise else []
        self._plan = self._table(self._planned_weights)

    def _predicted_noise(self, i: int) -> Combination:
        alpha, sigma, _ = self._levels[i]
        return predicted_noise(self.config.prediction_type, alpha, sigma)

    def _planned_weights(self, i: int) -> SolverWeights:
        """Weights of step i in a run from the first step."""
        return self._solver_weights(i, min(i + 1, self._highest_order(i)))

    def _highest_order(self, i: int) -> int:
        """Order of step i, once enough predictions are remembered."""
        raise NotImplementedError

    def _solver_weights(self, i: int, order: int) -> SolverWeights:
        """Weights of step i with `order` remembered predictions."""
        raise NotImplementedError

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        original = self._remember(noise_pred, i, sample)
        return StepResult(self._advance(i, sample, noise), original)

    def _widths_before(self, i: int, order: int) -> list[float]:
        """Widths of the steps before step i, newest first, for a step of this order."""
        logs = [self._levels[i - k].log_snr for k in range(order)]
        return [after - before for after, before in itertools.pairwise(logs)]

    def _advance(self, i: int, sample: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """The latents after step i, of lower order where fewer predictions are remembered."""
        weights = self._plan[i]
        if len(weights.past) > self._history.length:
            weights = self._solver_weights(i, self._history.length)
        return self._history.sum(*self._terms(weights, sample), (weights.noise, noise))

    def _terms(self, weights: SolverWeights, sample: np.ndarray) -> list[Term]:
        past = [(weight, self._history[k]) for k, weight in enumerate(weights.past)]
        return [(weights.sample, sample), *past]

    def _remember(self, noise_pred: np.ndarray, i: int, sample: np.ndarray) -> np.ndarray:
        """Remember the solver's prediction, clean latents or noise; returns the clean latents."""
        history, original = self._history, self._original(noise_pred, i, sample)
        newest = history.push()
        if not self._predicts_noise:
            np.copyto(newest, original)
        elif self.config.thresholding:  # the noise of the limited clean latents
            alpha, sigma, _ = self._levels[i]
            terms = (1 / sigma, sample), (-alpha * (1 / sigma), original)
            weighted_sum(newest, history.scratch, *terms)
        else:
            w = self._noises[i]
            terms = (w.sample, sample), (w.noise_pred, noise_pred)
            weighted_sum(newest, history.scratch, *terms)
        return original


def level(ratio: float) -> Level:
    """The level at which sigma / alpha is `ratio`."""
    alpha = 1 / math.hypot(ratio, 1)
    return Level(alpha, ratio * alpha, -math.log(ratio) if ratio else math.inf)


def log_snr_grid(
    config: LogSNRConfig,
    steps: int,
    timesteps: CustomSchedule = None,
    *,
    last: str = "first",
    rounds: bool = True,
) -> tuple[np.ndarray, list[Level]]:
    """Whole timesteps (steps,) and steps + 1 levels, fewer if lambda_min_clipped cuts them.

    Args:
      timesteps: the caller's own whole timesteps, falling, in place of spaced ones.
      last: the level after the last step: "zero" noise, the "first" training level, or the "same"
        as before it where the configuration spaces the levels.
      rounds: round the timesteps computed from Karras's sigmas; else they are truncated.
    """
    config.check_steps(steps)
    every = training_sigmas(config)
    found = _whole_timesteps(config, every, steps, timesteps)
    ratios = every[found.astype(np.int64)]
    if config.spaced_by:
        found, ratios = _spaced_levels(config, every, steps, rounds=rounds)
    final = {"zero": 0.0, "first": float(every[0]), "same": float(ratios[-1])}
    if last == "same" and not config.spaced_by:
        last = "first"
    return found, [level(ratio) for ratio in (*ratios.tolist(), final[last])]


def _whole_timesteps(
    config: LogSNRConfig, every: np.ndarray, steps: int, timesteps: CustomSchedule
) -> np.ndarray:
    if timesteps is not None:
        config.check_no_sigma_schedule()
        return custom_schedule("timesteps", timesteps, len(every), whole=True, length=steps)
    clipped = int(np.searchsorted(-np.log(every)[::-1], config.lambda_min_clipped))
    drop_last = config.timestep_spacing != "trailing"
    return np.round(config.spaced_timesteps(steps, drop_last=drop_last, clipped=clipped))


def _spaced_levels(
    config: LogSNRConfig, every: np.ndarray, steps: int, *, rounds: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and sigma / alpha of the schedule that the configuration names, both (steps,).

    Whole timesteps, as in diffusers; fractional for the schedules that diffusers does not have.
    """
    if config.spaced_by in LEVEL_SCHEDULES:
        return config.training_levels(every, steps)
    single = single_sigmas(config)
    sigmas = config.spaced_sigmas(float(single[0]), float(single[-1]), steps)
    timesteps = noise_schedules.sigma_to_timestep(sigmas, single)
    whole = rounds and config.spaced_by in ("karras", "lu")
    timesteps = np.round(timesteps) if whole else np.trunc(timesteps)
    return timesteps, config.spaced_sigmas(float(every[0]), float(every[-1]), steps)


def decay(start: Level, end: Level, *, predicts_noise: bool) -> float:
    """Weight of the latents in an exponential step. Source: 2211.01095, eq. 8; 2206.00927, 3.4."""
    return end.alpha / start.alpha if predicts_noise else end.sigma / start.sigma


def phis(start: Level, end: Level, *, predicts_noise: bool) -> tuple[float, float, float]:
    """Weights of the prediction at `start` and of its first two scaled differences.

    The exponential integrals of 2206.00927, eq. 3.3, times alpha or sigma at `end`.
    """
    width = end.log_snr - start.log_snr
    if math.isinf(width):  # the last step, of first order
        return (-end.alpha * start.sigma / start.alpha if predicts_noise else end.alpha), 0.0, 0.0
    exponent, scale = (width, -end.sigma) if predicts_noise else (-width, -end.alpha)
    return exponential_weights(exponent, scale)


def differences_weights(
    weights: tuple[float, float, float], width: float, back: Sequence[float]
) -> tuple[float, ...]:
    """Weights of predictions, newest first, from those of the newest and its scaled differences.

    Args:
      weights: of the newest prediction, and of its first and second difference.
      width: of the step.
      back: widths of the steps before, newest first, at most two: one for each difference.
    Source: 2211.01095, algorithm 2 and appendix; 2206.00927, appendix.
    """
    first, second, third = weights
    if not back:
        return (first,)
    if len(back) == 1:
        slope = second * (width / back[0])
        return first + slope, -slope
    curve = (second * back[0] + third * width) / (back[0] + back[1])
    newest, before = (second + curve) * (width / back[0]), -curve * (width / back[1])
    return first + newest, before - newest, -before


def exponential_weights(u: float, scale: float) -> tuple[float, float, float]:
    """scale times (e**u - 1), (e**u - 1) / u - 1 and (e**u - 1 - u) / u**2 - 1 / 2."""
    if not u:
        return 0.0, 0.0, 0.0
    first = math.expm1(u)
    second = first / u - 1
    return scale * first, scale * second, scale * (second / u - 0.5)
