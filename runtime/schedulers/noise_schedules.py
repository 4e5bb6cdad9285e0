"""Noise schedules and how inference steps are spread over them, in float64.

Source: DDPM, arXiv 2006.11239; improved DDPM, arXiv 2102.09672, eq. 17; Karras et al.,
arXiv 2206.00364, eq. 5; Lin et al., arXiv 2305.08891, algorithm 1 and table 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
SPACINGS = ("linspace", "leading", "trailing")


def betas(
    schedule: str, start: float, end: float, steps: int, trained: Sequence[float] | None = None
) -> np.ndarray:
    """The variance that each of the training steps adds, (steps,) float64.

    Args:
      schedule: one of BETA_SCHEDULES; `trained` betas, if given, are taken as they are.
    Raises: ValueError: unknown schedule, or values outside (0, 1).
    """
    if trained is not None:
        values = np.asarray(trained, dtype=np.float64)
    elif schedule == "linear":
        values = np.linspace(start, end, steps)
    elif schedule == "scaled_linear":
        values = np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2
    elif schedule == "sigmoid":
        values = start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))
    elif schedule in _SIGNAL_LEFT:
        left = _SIGNAL_LEFT[schedule](np.arange(steps + 1) / steps)
        values = np.minimum(1 - left[1:] / left[:-1], 0.999)
    else:
        raise ValueError(
            f"unknown beta_schedule '{schedule}'; choose one of {', '.join(BETA_SCHEDULES)}"
        )
    if values.ndim != 1 or not len(values) or not np.all((values > 0) & (values < 1)):
        raise ValueError("betas must be a list of numbers between 0 and 1")
    return values


def single_betas(
    schedule: str, start: float, end: float, steps: int, trained: Sequence[float] | None = None
) -> np.ndarray:
    """As betas, rounded as torch.linspace rounds: inwards from both ends, fused, (steps,) float32.

    diffusers finds some timesteps back from float32 tables and cuts them to whole ones, so that
    the last bit decides between two; everything else is computed from the float64 values.
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


# Share of the signal left at a time from 0 to 1.
_SIGNAL_LEFT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "squaredcos_cap_v2": lambda time: np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2,
    "laplace": _laplace,
    "exp": lambda time: np.exp(-12.0 * time),
}


def alphas_cumprod(values: np.ndarray, *, zero_terminal_snr: bool = False) -> np.ndarray:
    """Share of the signal's variance left after each training step, (steps,) float64."""
    kept = np.cumprod(1 - values)
    if zero_terminal_snr:  # arXiv 2305.08891, algorithm 1
        if len(kept) < 2:
            raise ValueError("rescale_betas_zero_snr needs at least two training steps")
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
      drop_last: spread one timestep more and leave the lowest out, as log-SNR solvers do.
      clipped: how many of the noisiest timesteps are never visited.
    Raises: ValueError: unknown spacing, or a number of steps out of range.
    """
    spread, top = steps + drop_last, train_steps - clipped
    if top < 1:
        raise ValueError("lambda_min_clipped leaves no timestep")
    if spacing == "linspace":
        found: np.ndarray = np.linspace(0, top - 1, spread)[::-1][:steps]
    elif spacing == "leading":
        if spread > top:
            raise ValueError(f"leading timestep_spacing takes 1 to {top - drop_last} steps")
        found = (np.arange(spread)[::-1] * float(top // spread))[:steps] + offset
    elif spacing == "trailing":
        # the range sometimes ends with one timestep too many, below zero
        found = np.round(np.arange(top, 0, -train_steps / steps))[:steps] - 1
    else:
        raise ValueError(
            f"unknown timestep_spacing '{spacing}'; choose one of {', '.join(SPACINGS)}"
        )
    if found[0] >= train_steps:
        raise ValueError(
            f"steps_offset {offset} leads to timestep {found[0]:g}, "
            f"beyond the {train_steps} training steps"
        )
    return np.asarray(found)


def karras_sigmas(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Noise levels from high to low, evenly spaced in sigma**(1/rho). Source: eq. 5."""
    ramp = np.linspace(high ** (1 / rho), low ** (1 / rho), steps)
    return np.asarray(ramp**rho)


def exponential_sigmas(low: float, high: float, steps: int) -> np.ndarray:
    """Noise levels from high to low, evenly spaced in log(sigma)."""
    return np.asarray(np.exp(np.linspace(math.log(high), math.log(low), steps)))


def sigma_to_timestep(sigma: np.ndarray, all_sigmas: np.ndarray) -> np.ndarray:
    """Fractional training timestep of each noise level, linear in log(sigma).

    Args:
      all_sigmas: (train_steps,) of every training step, rising, float64 or float32.
    """
    levels = np.log(np.maximum(sigma, 1e-10))
    return np.asarray(np.interp(levels, np.log(all_sigmas), np.arange(len(all_sigmas))))
