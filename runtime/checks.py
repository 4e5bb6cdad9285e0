"""Arguments that a caller may get wrong, each refused in one line."""

from __future__ import annotations

import math
import operator


def whole(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int from low to high; NumPy's integers are welcome, booleans are not.

    Raises: ValueError: something else.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r:.60}") from None
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{name} must be {low} to {high}, got {value!r:.60}")
    return number


def number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """`value` as a finite float from low to high.

    Raises: ValueError: something else.
    """
    span = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be {span}, got {value!r:.60}") from None
    if isinstance(value, (str, bool)) or not (math.isfinite(result) and low <= result <= high):
        raise ValueError(f"{name} must be {span}, got {value!r:.60}")
    return result
