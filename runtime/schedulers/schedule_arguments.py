"""Checks of numbers: the caller's own timesteps or sigmas, and the options of schedulers."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError

CustomSchedule = Sequence[float] | None
"""The caller's own timesteps or sigmas, falling, in place of spaced ones."""


def is_number(value: Any) -> bool:
    """Whether it is a finite number of a size that schedules can hold; booleans do not count."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def is_whole(value: Any) -> bool:
    """Whether it is an integer; booleans do not count."""
    return isinstance(value, int) and not isinstance(value, bool)


def number_list(name: str, values: Any) -> tuple[float, ...]:
    """A list, tuple or array of finite numbers as a tuple.

    Raises: InvalidArgumentError: anything else.
    """
    found = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(found, (list, tuple)) or not all(is_number(value) for value in found):
        raise InvalidArgumentError(f"{name} must be a list of numbers, got {reprlib.repr(values)}")
    return tuple(float(value) for value in found)


def custom_schedule(
    name: str, values: Any, high: float, *, whole: bool = False, length: int | None = None
) -> np.ndarray:
    """The caller's own timesteps or sigmas, float64.

    Args:
      high: above all values; the lowest allowed is 0.
      whole: only integers are allowed.
      length: how many there must be.
    Raises: InvalidArgumentError: not a list of falling numbers in that range, or not that many.
    """
    found = np.array(number_list(name, values))
    if not len(found) or not np.all((found >= 0) & (found < high)):
        raise InvalidArgumentError(f"{name} must be numbers from 0 to below {high:g}")
    if np.any(np.diff(found) >= 0):
        raise InvalidArgumentError(f"{name} must fall from each to the next")
    if whole and np.any(found != np.round(found)):
        raise InvalidArgumentError(f"{name} must be whole numbers")
    if length is not None and len(found) != length:
        raise InvalidArgumentError(
            f"{name}: expected {length} for num_inference_steps, got {len(found)}"
        )
    return found


def number_option(name: str, value: Any, low: float, high: float) -> float:
    """An option of a scheduler as a float. Raises: InvalidArgumentError: not in low..high."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not low <= value <= high:
        raise InvalidArgumentError(
            f"{name} must be between {low:g} and {high:g}, got {reprlib.repr(value)}"
        )
    return float(value)
