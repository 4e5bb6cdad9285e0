"""Checks of arguments: each returns the value as it will be used, or raises with one line.

Every function raises InvalidArgumentError; `name` is what its message calls the argument.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown


def integer(name: str, value: object, low: int, high: int) -> int:
    """An int from low to high; NumPy integers are allowed, booleans are not."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(f"{name} must be an integer, got {shown(value)}") from None
    if isinstance(value, (bool, np.ndarray)) or not low <= number <= high:
        raise InvalidArgumentError(f"{name} must be {low} to {high}, got {shown(value)}")
    return number


def number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """A finite float from low to high; NumPy numbers are allowed, booleans are not."""
    result = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    if not (math.isfinite(result) and low <= result <= high):
        span = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
        raise InvalidArgumentError(f"{name} must be {span}, got {shown(value)}")
    return result


def boolean(name: str, value: object) -> bool:
    """A bool; NumPy's are allowed."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgumentError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def function(name: str, value: object) -> None:
    """None or something callable."""
    if value is not None and not callable(value):
        raise InvalidArgumentError(f"{name} must be a function, got {shown(value)}")


def strings(name: str, value: object) -> list[str]:
    """A list of strings, from one string, a list or a tuple."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise InvalidArgumentError(
            f"{name} must be a string or a list of strings, got {shown(value)}"
        )
    return list(value)


def float_array(name: str, value: object, shape: Sequence[int | None]) -> np.ndarray:
    """A float32 array of finite numbers.

    Args:
      shape: the shape that is required; None stands for any size.
    """
    is_float = isinstance(value, np.ndarray) and value.dtype == np.float32
    fits = is_float and value.ndim == len(shape)  # type: ignore[attr-defined]
    if not fits or any(
        wanted not in (None, size)
        for wanted, size in zip(shape, value.shape, strict=True)  # type: ignore[attr-defined]
    ):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise InvalidArgumentError(f"{name}: expected float32 ({sizes}), got {shown(value)}")
    array: np.ndarray = value  # type: ignore[assignment]
    if not np.isfinite(array).all():
        raise InvalidArgumentError(f"{name}: contains NaN or infinity")
    return array


def interval(name: str, value: object) -> tuple[float, float]:
    """A pair (start, end) with 0 <= start < end <= 1."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidArgumentError(f"{name} must be (start, end), got {shown(value)}")
    start, end = value
    number(f"{name} start", start, 0, 1)
    number(f"{name} end", end, 0, 1)
    if not start < end:
        raise InvalidArgumentError(f"{name} must have start < end, got {value}")
    return start, end
