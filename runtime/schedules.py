"""Noise schedules and how inference steps are spread over them, in float64.

Source: DDPM, arXiv 2006.11239; improved DDPM, arXiv 2102.09672, eq. 17; Karras et al.,
arXiv 2206.00364, eq. 5; Lin et al., arXiv 2305.08891, algorithm 1 and table 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
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
    elif schedule == "squaredcos_cap_v2":
        t = np.arange(steps + 1) / steps
        alpha_bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        values = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    else:
        raise ValueError(
            f"unknown beta_schedule '{schedule}'; choose one of {', '.join(BETA_SCHEDULES)}"
        )
    if values.ndim != 1 or not len(values) or not np.all((values > 0) & (values < 1)):
        raise ValueError("betas must be a list of numbers between 0 and 1")
    return values


def alphas_cumprod(values: np.ndarray, *, zero_terminal_snr: bool = False) -> np.ndarray:
    """Share of the signal's variance left after each training step, (steps,) float64."""
    kept = np.cumprod(1 - values)
    if zero_terminal_snr:  # arXiv 2305.08891, algorithm 1
        root = np.sqrt(kept)
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return kept


def spaced_timesteps(spacing: str, steps: int, train_steps: int, offset: int) -> np.ndarray:
    """Training timesteps to visit, highest first, (steps,) float64, not yet rounded.

    Raises: ValueError: unknown spacing, or a number of steps out of range.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"num_inference_steps must be 1 to {train_steps}, got {steps}")
    if spacing == "linspace":
        return np.asarray(np.linspace(0, train_steps - 1, steps)[::-1])
    if spacing == "leading":
        return np.asarray(np.arange(steps)[::-1] * float(train_steps // steps) + offset)
    if spacing == "trailing":
        return np.round(np.arange(train_steps, 0, -train_steps / steps))[:steps] - 1
    raise ValueError(f"unknown timestep_spacing '{spacing}'; choose one of {', '.join(SPACINGS)}")


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
      all_sigmas: (train_steps,) of every training step, rising.
    """
    return np.asarray(np.interp(np.log(sigma), np.log(all_sigmas), np.arange(len(all_sigmas))))
