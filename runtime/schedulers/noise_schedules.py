"""Noise schedules of the training, and timesteps and noise levels for the inference, in float64.

To add a schedule, write its function and name it in one of the tables: _BETAS or _SIGNAL_LEFT
(beta_schedule), _SPACINGS (timestep_spacing) or SIGMA_SCHEDULES.

Source: DDPM, arXiv 2006.11239; improved DDPM, arXiv 2102.09672, eq. 17; Karras et al.,
arXiv 2206.00364, eq. 5; Lin et al., arXiv 2305.08891, algorithm 1 and table 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.beta_distribution import beta_quantiles


def betas(
    schedule: str, start: float, end: float, steps: int, trained: Sequence[float] | None = None
) -> np.ndarray:
    """The variance that each training step adds, (steps,) float64.

    Args:
      schedule: one of BETA_SCHEDULES.
      start, end: betas of the first and the last step, 0 to 1, for those schedules that have them.
      trained: the betas themselves; the other arguments are then ignored.
    Raises: InvalidArgumentError: unknown schedule, or values outside (0, 1).
    """
    if trained is not None:
        values = np.asarray(trained, dtype=np.float64)
    elif schedule in _BETAS:
        values = _BETAS[schedule](start, end, steps)
    elif schedule in _SIGNAL_LEFT:
        left = _SIGNAL_LEFT[schedule](np.arange(steps + 1) / steps)
        values = np.minimum(1 - left[1:] / left[:-1], 0.999)
    else:
        raise InvalidArgumentError(
            f"unknown beta_schedule '{schedule}'; choose one of {', '.join(BETA_SCHEDULES)}"
        )
    if values.ndim != 1 or not len(values) or not np.all((values > 0) & (values < 1)):
        raise InvalidArgumentError("betas must be a list of numbers between 0 and 1")
    return values


def single_betas(
    schedule: str, start: float, end: float, steps: int, trained: Sequence[float] | None = None
) -> np.ndarray:
    """The same as betas, rounded as torch.linspace rounds, (steps,) float32.

    torch.linspace counts from both ends to the middle and rounds once. diffusers computes some
    timesteps from float32 tables and truncates them to whole numbers, so that the last bit decides
    between two timesteps. Everything else here is computed from the float64 values.
    """
    if trained is not None or schedule not in ("linear", "scaled_linear"):
        return betas(schedule, start, end, steps, trained).astype(np.float32)
    root = schedule == "scaled_linear"
    low, high = (np.float32(math.sqrt(x) if root else x) for x in (start, end))
    width, at = float((high - low) / np.float32(max(steps - 1, 1))), np.arange(steps)
    up, down = float(low) + width * at, float(high) - width * (steps - 1 - at)
    values = np.where(at < steps // 2, up, down).astype(np.float32)
    return values**2 if root else values


def _laplace(time: np.ndarray) -> np.ndarray:
    """Source: Hang et al., arXiv 2407.03297, table 1."""
    away = 0.5 - time
    half_log_snr = -0.5 * np.copysign(1, away) * np.log(1 - 2 * np.abs(away) + 1e-6)
    return np.asarray(np.sqrt(1 / (1 + np.exp(-half_log_snr))))


# Name -> betas, from the first, the last and their number.
_BETAS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": np.linspace,
    "scaled_linear": lambda start, end, steps: (
        np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2
    ),
    "sigmoid": lambda start, end, steps: (
        start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))
    ),
}
# Name -> share of the signal's variance that is left at a time from 0 to 1.
_SIGNAL_LEFT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "squaredcos_cap_v2": lambda time: np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2,
    "laplace": _laplace,
    "exp": lambda time: np.exp(-12.0 * time),
}
BETA_SCHEDULES = (*_BETAS, *_SIGNAL_LEFT)


def alphas_cumprod(values: np.ndarray, *, zero_terminal_snr: bool = False) -> np.ndarray:
    """Share of the signal's variance left after each training step, (steps,) float64."""
    kept = np.cumprod(1 - values)
    if zero_terminal_snr:  # arXiv 2305.08891, algorithm 1
        if len(kept) < 2:
            raise InvalidArgumentError("rescale_betas_zero_snr needs at least two training steps")
        root = np.sqrt(kept)
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return kept


def spaced_timesteps(
    spacing: str,
    steps: int,
    train_steps: int,
    offset: int,
    *,
    drop_last: bool = False,
    clipped: int = 0,
) -> np.ndarray:
    """Training timesteps to visit, highest first, (steps,) float64, not yet rounded.

    Args:
      spacing: one of SPACINGS.
      offset: added to every timestep of "leading" spacing.
      drop_last: space one timestep more and leave the lowest out, as log-SNR solvers do.
      clipped: how many of the noisiest timesteps are never visited.
    Raises: InvalidArgumentError: unknown spacing, or a number of steps out of range.
    Source: Lin et al., arXiv 2305.08891, table 2.
    """
    if train_steps <= clipped:
        raise InvalidArgumentError("lambda_min_clipped leaves no timestep")
    if spacing not in _SPACINGS:
        raise InvalidArgumentError(
            f"unknown timestep_spacing '{spacing}'; choose one of {', '.join(SPACINGS)}"
        )
    spaced = _SPACINGS[spacing](steps + drop_last, train_steps - clipped, train_steps / steps)
    found = spaced[:steps] + (offset if spacing == "leading" else 0)
    if found[0] >= train_steps:
        raise InvalidArgumentError(
            f"steps_offset {offset} leads to timestep {found[0]:g}, "
            f"beyond the {train_steps} training steps"
        )
    return np.asarray(found)


def _linspace(count: int, top: int, _: float) -> np.ndarray:
    return np.linspace(0, top - 1, count)[::-1]


def _leading(count: int, top: int, _: float) -> np.ndarray:
    if count > top:
        raise InvalidArgumentError(
            f"timestep_spacing 'leading': {count} timesteps are more than the {top} training "
            "steps; use fewer steps"
        )
    return np.arange(count)[::-1] * float(top // count)


def _trailing(_: int, top: int, ratio: float) -> np.ndarray:
    """Of some numbers of steps this is one timestep too many, below zero."""
    return np.round(np.arange(top, 0, -ratio)) - 1


# Name -> function of the number of timesteps, the number of training steps that may be visited, and
# training steps for each inference step; returns timesteps, highest first.
_SPACINGS: dict[str, Callable[[int, int, float], np.ndarray]] = {
    "linspace": _linspace,
    "leading": _leading,
    "trailing": _trailing,
}
SPACINGS = tuple(_SPACINGS)


def karras_sigmas(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Noise levels from high to low, evenly spaced in sigma**(1/rho), (steps,) float64.

    Source: Karras et al., arXiv 2206.00364, eq. 5.
    """
    ramp = np.linspace(high ** (1 / rho), low ** (1 / rho), steps)
    return np.asarray(ramp**rho)


def exponential_sigmas(low: float, high: float, steps: int) -> np.ndarray:
    """Noise levels from high to low, evenly spaced in log(sigma), (steps,) float64."""
    return np.asarray(np.exp(np.linspace(math.log(high), math.log(low), steps)))


def beta_sigmas(low: float, high: float, steps: int) -> np.ndarray:
    """Noise levels from high to low, at quantiles of a beta distribution, (steps,) float64.

    Source: Lee et al., arXiv 2407.12173; diffusers' use_beta_sigmas.
    """
    quantiles = beta_quantiles(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    return np.asarray(low + quantiles * (high - low))


SIGMA_SCHEDULES: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "beta": beta_sigmas,
}
"""Name -> noise levels, from the lowest, the highest and their number. A configuration chooses one
by a key such as use_karras_sigmas."""


def sigma_to_timestep(sigma: np.ndarray, all_sigmas: np.ndarray) -> np.ndarray:
    """Fractional training timestep of each noise level, linear in log(sigma).

    Args:
      sigma: (n,) noise levels, 0 or more.
      all_sigmas: (train_steps,) of every training step, rising, float64 or float32.
    Returns: (n,) float64.
    """
    levels = np.log(np.maximum(sigma, 1e-10))
    return np.asarray(np.interp(levels, np.log(all_sigmas), np.arange(len(all_sigmas))))
