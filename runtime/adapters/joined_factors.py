"""The factors of several LoRAs joined along the rank, as one input of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdexport.runtime.adapters.lora_inputs import LayerShape


def scaled(up: np.ndarray, scale: float) -> np.ndarray:
    """The second factor times a scale."""
    with np.errstate(over="ignore"):  # the output is then not finite, which is an error
        return up if scale == 1 else up * np.float32(scale)


def joined_down(shape: LayerShape, downs: Sequence[np.ndarray], rank: int) -> np.ndarray:
    """The first factors, joined along the rank; with zeros up to `rank`."""
    rows = rank * max(shape.taps, 1)
    return _joined(downs, 0 if shape.kernel else 1, rows, shape.inputs)


def joined_up(shape: LayerShape, ups: Sequence[np.ndarray], rank: int) -> np.ndarray:
    """The second factors, as joined_down."""
    return _joined(ups, 1 if shape.kernel else 0, rank, shape.outputs)


def _joined(parts: Sequence[np.ndarray], axis: int, size: int, other: int) -> np.ndarray:
    missing = size - sum(part.shape[axis] for part in parts)
    if missing or not parts:
        zeros = np.zeros((missing, other) if axis == 0 else (other, missing), np.float32)
        parts = [*parts, zeros]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
