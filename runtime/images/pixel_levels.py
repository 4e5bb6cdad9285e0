"""Arrays of pixels: which values they hold, how many images they are, and as 8-bit levels."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import one_line, shown

CHANNELS = (1, 3, 4)
"""Grey, RGB, RGBA."""
_UNIT_TOLERANCE = 1e-3
"""By how much floats in 0..1 may leave that range, as filters do."""


@runtime_checkable
class ArrayLike(Protocol):
    """Anything that NumPy can turn into an array, such as a torch tensor in host memory."""

    def __array__(self) -> np.ndarray: ...


def to_array(source: ArrayLike, name: str) -> np.ndarray:
    """The array of an array-like object.

    Raises: InvalidArgumentError: its conversion failed, as for a tensor on a GPU.
    """
    try:
        return np.asarray(source)
    except MemoryError:
        raise
    except Exception as error:  # torch raises TypeError or RuntimeError, others anything
        kind = type(source).__name__
        raise InvalidArgumentError(
            f"{name}: a {kind} that NumPy cannot read: {one_line(error, 120)}"
        ) from error


def split_batch(pixels: np.ndarray, name: str, *, grey: bool = False) -> list[np.ndarray]:
    """The images of an array, each (H, W), (H, W, 3) or (H, W, 4).

    Args:
      pixels: (H, W), (H, W, C), (C, H, W), (B, H, W, C) or (B, C, H, W), with 1, 3 or 4 channels;
        where both fit, the channels are last.
      grey: read three dimensions without channels in the last one as (B, H, W).
    Raises: InvalidArgumentError: another shape, or no pixels.
    """
    array = pixels
    if array.ndim == 3 and array.shape[2] not in CHANNELS and grey:
        array = array[..., None]
    elif array.ndim == 2:
        array = array[None, ..., None]
    elif array.ndim == 3:
        array = array[None]
    if array.ndim == 4 and array.shape[3] not in CHANNELS:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in CHANNELS or not array.size:
        expected = "(H, W), (B, H, W)" if grey else "(H, W)"
        raise InvalidArgumentError(
            f"{name}: expected {expected}, or 1, 3 or 4 channels first or last, got {shown(pixels)}"
        )
    return [each[..., 0] if each.shape[2] == 1 else each for each in array]


def to_levels(
    values: np.ndarray, name: str, *, zero_one: bool = False, signed: bool = False
) -> np.ndarray:
    """Turn pixel values into 8-bit levels; the value range says how they are meant.

    Args:
      values: booleans; integers in 0..255, or in 0..65535 if one is above 255; floats in 0..1, or
        in 0..255 if one is 2 or more.
      zero_one: integers that are all 0 or 1 mean black and white, as in masks.
      signed: floats in -1..1, with a negative one, are allowed.
    Returns: uint8 of the same shape.
    Raises: InvalidArgumentError: other values, NaN or infinity.
    """
    kind = values.dtype.kind
    if kind == "b":
        return values * np.uint8(255)
    if kind not in "uif":
        raise InvalidArgumentError(f"{name}: expected numbers, got {shown(values)}")
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InvalidArgumentError(f"{name}: contains NaN or infinity")
    if signed and kind == "f" and -1 - _UNIT_TOLERANCE <= low < 0 and high <= 1 + _UNIT_TOLERANCE:
        values, low, high = values / 2 + 0.5, 0, 1
    white = _white(float(high), kind, zero_one=zero_one)
    if low < (-_UNIT_TOLERANCE if kind == "f" else 0) or white is None:
        raise InvalidArgumentError(
            f"{name}: values from {low:g} to {high:g}; expected booleans, 0 to 1, or 0 to 255"
        )
    if white == 255 and values.dtype == np.uint8:
        return values
    scaled = values.astype(np.float64 if kind != "f" else values.dtype)
    scaled *= 255 / white
    return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)


def _white(high: float, kind: str, *, zero_one: bool) -> int | None:
    """The value that means white, for the largest value; None if it cannot be told."""
    if kind == "f":
        if high <= 1 + _UNIT_TOLERANCE:
            return 1
        return 255 if 2 <= high <= 255.5 else None
    if zero_one and high <= 1:
        return 1
    if high <= 255:
        return 255
    return 65535 if high <= 65535 else None
