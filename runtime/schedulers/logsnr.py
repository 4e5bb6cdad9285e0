"""What the solvers that step in log-SNR share: configuration, noise levels, exponentials.

Latents are alpha x + sigma noise with alpha**2 + sigma**2 = 1; lambda = log(alpha / sigma).
Source: DPM-Solver, arXiv 2206.00927; DPM-Solver++, arXiv 2211.01095.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.common import (
    Memory,
    combine,
    epsilon_weights,
    limit,
    original_weights,
    require_finite,
)
from sdexport.runtime.schedulers.config import custom_schedule
from sdexport.runtime.schedulers.sigmas import SpreadConfig, single_sigmas, training_sigmas


@dataclass(frozen=True, kw_only=True)
class LogSNRConfig(SpreadConfig):
    solver_order: int = 2
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    lower_order_final: bool = True

    # not keys of every one of these solvers
    clip_sample = False
    clip_sample_range = 1.0
    lambda_min_clipped = -math.inf
    use_lu_lambdas = False


class Level(NamedTuple):
    """One noise level."""

    alpha: float
    sigma: float
    log_snr: float


def level(ratio: float) -> Level:
    """The level at which sigma / alpha is `ratio`."""
    alpha = 1 / math.hypot(ratio, 1)
    return Level(alpha, ratio * alpha, -math.log(ratio) if ratio else math.inf)


def logsnr_grid(
    config: LogSNRConfig,
    steps: int,
    timesteps: Sequence[float] | None = None,
    *,
    last: str = "first",
    rounds: bool = True,
) -> tuple[np.ndarray, list[Level]]:
    """Whole timesteps (steps,) and steps + 1 levels, fewer if lambda_min_clipped cuts them.

    Args:
      last: the level after the last step: "zero" noise, the "first" training level, or "same" as
        before it where the levels are spread by a rule.
      rounds: round the timesteps found back from Karras's sigmas; those of others are cut.
    """
    config.check_steps(steps)
    every = training_sigmas(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    is_spread = config.is_spread or config.use_lu_lambdas
    if timesteps is not None:
        if is_spread:
            raise ValueError("timesteps: the configuration spreads sigmas; give one or the other")
        found = custom_schedule("timesteps", timesteps, len(every), whole=True, length=steps)
    else:
        clipped = int(np.searchsorted(-np.log(every)[::-1], config.lambda_min_clipped))
        found = np.round(
            noise_schedules.spaced_timesteps(
                config.timestep_spacing,
                steps,
                len(every),
                config.steps_offset,
                drop_last=config.timestep_spacing != "trailing",
                clipped=clipped,
            )
        )
    ratios = every[found.astype(np.int64)]
    if is_spread:
        single = single_sigmas(config, zero_terminal_snr=config.rescale_betas_zero_snr)
        rule, whole = config.spread, config.use_karras_sigmas
        if config.use_lu_lambdas and not config.use_karras_sigmas:
            rule, whole = noise_schedules.exponential_sigmas, True
        ratios = rule(float(every[0]), float(every[-1]), steps)
        again = rule(float(single[0]), float(single[-1]), steps)
        found = noise_schedules.sigma_to_timestep(again, single)
        found = np.round(found) if whole and rounds else np.trunc(found)
    final = {"zero": 0.0, "first": float(every[0]), "same": float(ratios[-1])}
    if last == "same" and not is_spread:
        last = "first"
    return found, [level(ratio) for ratio in (*ratios.tolist(), final[last])]


def decay(predicts_noise: bool, start: Level, goal: Level) -> float:
    """Weight of the latents in an exponential step. Source: 2211.01095, eq. 8; 2206.00927, 3.4."""
    return goal.alpha / start.alpha if predicts_noise else goal.sigma / start.sigma


def phis(predicts_noise: bool, start: Level, goal: Level) -> tuple[float, float, float]:
    """Weights of the prediction at `start` and its first two scaled differences, to `goal`.

    The exponential integrals of 2206.00927, eq. 3.3, times the level's alpha or sigma.
    """
    width = goal.log_snr - start.log_snr
    if math.isinf(width):  # the last step, of first order
        return (-goal.alpha * start.sigma / start.alpha if predicts_noise else goal.alpha), 0.0, 0.0
    exponent, scale = (width, -goal.sigma) if predicts_noise else (-width, -goal.alpha)
    return exponential_weights(exponent, scale)


def exponential_weights(exponent: float, scale: float) -> tuple[float, float, float]:
    """scale times (e**u - 1), (e**u - 1) / u - 1 and ((e**u - 1 - u) / u**2 - 1 / 2)."""
    if not exponent:
        return 0.0, 0.0, 0.0
    first = math.expm1(exponent)
    second = first / exponent - 1
    return scale * first, scale * second, scale * (second / exponent - 0.5)


class Converter:
    """Turns the UNet's prediction into clean latents, and on to what a solver works with."""

    def __init__(
        self, name: str, config: LogSNRConfig, levels: Sequence[Level], *, predicts_noise: bool
    ) -> None:
        kind = config.prediction_type
        self._config = config
        self._predicts_noise = predicts_noise
        self._levels = levels[:-1]
        self._originals = [original_weights(kind, one.alpha, one.sigma) for one in self._levels]
        self._noises = [epsilon_weights(kind, one.alpha, one.sigma) for one in self._levels]
        require_finite(name, self._originals, self._noises)

    def original(
        self, memory: Memory, i: int, noise_pred: np.ndarray, sample: np.ndarray
    ) -> np.ndarray:
        """Clean latents in a new array."""
        a, b = self._originals[i]
        found = memory.sum((a, sample), (b, noise_pred))
        limit(found, memory.scratch, self._config)
        return found

    def remember(
        self,
        memory: Memory,
        i: int,
        noise_pred: np.ndarray,
        sample: np.ndarray,
        original: np.ndarray,
    ) -> None:
        """Push the solver's prediction: clean latents, or the noise beside them."""
        kept = memory.push()
        if not self._predicts_noise:
            np.copyto(kept, original)
        elif self._config.thresholding:
            one = self._levels[i]
            inverse = 1 / one.sigma
            combine(kept, memory.scratch, (inverse, sample), (-one.alpha * inverse, original))
        else:
            a, b = self._noises[i]
            combine(kept, memory.scratch, (a, sample), (b, noise_pred))
