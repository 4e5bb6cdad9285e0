"""Arguments that a caller may get wrong, each refused in one line."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence

import numpy as np

from sdexport.engines.messages import shown


def whole(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int from low to high; NumPy's integers are welcome, booleans are not.

    Raises: ValueError: something else.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {shown(value)}") from None
    if isinstance(value, (bool, np.ndarray)) or not low <= number <= high:
        raise ValueError(f"{name} must be {low} to {high}, got {shown(value)}")
    return number


def number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """`value` as a finite float from low to high; NumPy's numbers are welcome, booleans are not.

    Raises: ValueError: something else.
    """
    result = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    if not (math.isfinite(result) and low <= result <= high):
        span = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
        raise ValueError(f"{name} must be {span}, got {shown(value)}")
    return result


def function(name: str, value: object) -> None:
    """Raises: ValueError: `value` is neither None nor a function."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function, got {shown(value)}")


def texts(name: str, value: object) -> list[str]:
    """One text, or a list or tuple of them, as a list.

    Raises: ValueError: something else.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{name} must be a text or a list of texts, got {shown(value)}")
    return list(value)


def floats(name: str, value: object, shape: Sequence[int | None]) -> np.ndarray:
    """`value`, if it is a float32 array of finite numbers and of that shape; None is any size.

    Raises: ValueError: something else.
    """
    fits = isinstance(value, np.ndarray) and value.ndim == len(shape) and value.dtype == np.float32
    if not fits or any(
        want not in (None, got)
        for want, got in zip(shape, value.shape, strict=True)  # type: ignore[attr-defined]
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected float32 ({wanted}), got {shown(value)}")
    array: np.ndarray = value  # type: ignore[assignment]
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: NaN or infinity is in it")
    return array


def interval(name: str, value: object) -> tuple[float, float]:
    """Two rising numbers from 0 to 1.

    Raises: ValueError: they are not.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} must be (start, end), got {shown(value)}")
    start, end = value
    number(f"{name} start", start, 0, 1)
    number(f"{name} end", end, 0, 1)
    if not start < end:
        raise ValueError(f"{name} must rise, got {value}")
    return start, end
