"""Schedules of noise levels over all levels of the training, as in k-diffusion's programs.

To add one, write its function and name it in LEVEL_SCHEDULES. The levels do not depend on
timestep_spacing; the last step goes on to zero noise, or to where the sampler ends.

Source: ComfyUI's and AUTOMATIC1111's schedules of the same names; Sabour et al., Align Your Steps,
arXiv 2404.14507; Lee et al., Beta Sampling is All You Need, arXiv 2407.12173.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.beta_distribution import beta_quantiles
from sdexport.runtime.schedulers.noise_schedules import exponential_sigmas

_BETA_SHAPE = 0.6
_TURBO_STEPS = 10
# Noise levels of ten steps and, in place of zero, the lowest. Source: the authors' tables.
_AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_AYS_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def _levels_at(timesteps: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Noise levels at fractional timesteps, linear in log(sigma)."""
    return np.asarray(np.exp(np.interp(timesteps, np.arange(len(every)), np.log(every))))


def _normal(every: np.ndarray, steps: int) -> np.ndarray:
    """Even timesteps, from the last to the first of the training."""
    return _levels_at(np.linspace(len(every) - 1, 0, steps), every)


def _sgm_uniform(every: np.ndarray, steps: int) -> np.ndarray:
    """Even timesteps; the step after these would be the first of the training."""
    return _levels_at(np.linspace(len(every) - 1, 0, steps + 1)[:-1], every)


def _simple(every: np.ndarray, steps: int) -> np.ndarray:
    """Even whole timesteps, counted from the last."""
    return np.asarray(every[-1 - (np.arange(steps) * (len(every) / steps)).astype(np.int64)])


def _ddim_uniform(every: np.ndarray, steps: int) -> np.ndarray:
    """Every so many timesteps from the second on: of some numbers, a few steps more."""
    return np.asarray(every[1 :: max(len(every) // steps, 1)][::-1])


def _beta_timesteps(every: np.ndarray, steps: int) -> np.ndarray:
    """Whole timesteps at quantiles of a beta distribution: of many steps, fewer."""
    quantiles = beta_quantiles(1 - np.arange(steps) / steps, _BETA_SHAPE, _BETA_SHAPE)
    timesteps = np.rint(quantiles * (len(every) - 1)).astype(np.int64)
    return np.asarray(every[np.unique(timesteps)[::-1]])


def _kl_optimal(every: np.ndarray, steps: int) -> np.ndarray:
    """Even in arctan(sigma). Source: Align Your Steps, section 3.1."""
    return np.tan(np.linspace(math.atan(every[-1]), math.atan(every[0]), steps))


def _linear_quadratic(every: np.ndarray, steps: int) -> np.ndarray:
    """Down by a fortieth of the highest level in even steps, then by a quadratic to zero."""
    first, threshold = steps // 2, 0.025
    gone = np.arange(steps) * (threshold / max(first, 1))
    if first:
        rest, excess = steps - first, first - threshold * steps
        square = excess / (first * rest**2)
        slope = threshold / first - 2 * excess / rest**2
        k = np.arange(first, steps)
        gone[first:] = square * k**2 + slope * k + square * first**2
    return np.asarray(every[-1] * (1 - gone))


def _turbo(every: np.ndarray, steps: int) -> np.ndarray:
    """The last whole tenths of the training: SD Turbo's timesteps 999, 899 and so on."""
    if steps > _TURBO_STEPS:
        raise InvalidArgumentError(
            f"schedule 'sd_turbo' has 1 to {_TURBO_STEPS} steps, got {steps}"
        )
    tenth = len(every) / _TURBO_STEPS
    return _levels_at(len(every) - 1 - np.arange(steps) * tenth, every)


def _align_your_steps(table: tuple[float, ...], steps: int) -> np.ndarray:
    """A table of ten steps, for others linear in log(sigma) over the share of the steps."""
    at = np.linspace(0, len(table) - 1, steps + 1)[:-1]
    return np.exp(np.interp(at, np.arange(len(table)), np.log(table)))


LEVEL_SCHEDULES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "normal": _normal,
    "simple": _simple,
    "sgm_uniform": _sgm_uniform,
    "ddim_uniform": _ddim_uniform,
    "beta_timesteps": _beta_timesteps,
    "kl_optimal": _kl_optimal,
    "linear_quadratic": _linear_quadratic,
    "polyexponential": lambda every, steps: exponential_sigmas(every[0], every[-1], steps),
    "sd_turbo": _turbo,
    "align_your_steps": lambda _, steps: _align_your_steps(_AYS, steps),
    "align_your_steps_xl": lambda _, steps: _align_your_steps(_AYS_XL, steps),
}
"""Name -> noise levels before each step, falling, from those of the training, rising, and a number
of steps."""

FOR_BETAS = ("sd_turbo", "align_your_steps", "align_your_steps_xl")
"""Schedules of models that were trained on Stable Diffusion's betas, not with EDM."""
