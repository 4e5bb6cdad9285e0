"""The two factors of a LoRA's change to a layer, for the kinds that have them.

The change is up @ down: (outputs, rank) @ (rank, inputs, kernel). LoHa and LoKr are products of two
such changes, element by element and Kronecker's, and so have exact factors of a higher rank:

    (A1 B1) * (A2 B2)        of rank r1 r2: columns and rows are multiplied in pairs
    kron(A1 B1, A2 B2)       = kron(A1, A2) kron(B1, B2)

Source: Van Loan 2000, "The ubiquitous Kronecker product", J. Comput. Appl. Math. 123, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from sdexport.runtime.adapters.lora_inputs import LayerShape
from sdexport.runtime.adapters.lora_kinds import (
    BIASES,
    DORA,
    LOHA,
    LOKR,
    LORA,
    SINGLE,
    kind_of,
)
from sdexport.runtime.adapters.lora_settings import ratio_of
from sdexport.runtime.adapters.safetensors_file import StoredTensor

Factors = Mapping[str, np.ndarray]


class NotLowRankError(ValueError):
    """A change that no factors of low rank give; the message names its kind."""


class Pair(NamedTuple):
    """down: (rank, inputs), or (rank, inputs, height, width). up: (outputs, rank), alpha in it."""

    down: np.ndarray
    up: np.ndarray


def factors_of(
    tensors: Mapping[str, StoredTensor],
    shape: LayerShape,
    of_settings: Callable[[int | None], float | None],
) -> Pair:
    """The factors of a layer, whose values and shapes are checked.

    Args:
      tensors: by role. of_settings: PeftSettings.ratio of the layer.
    Raises: NotLowRankError: see there. ValueError, or anything that NumPy raises: what is wrong.
    """
    values = _values(tensors)
    if biases := BIASES.union({"up_bias"}).intersection(values):
        raise NotLowRankError(f"a change of the bias ({', '.join(sorted(biases))})")
    kind = kind_of(values)
    if DORA.intersection(values):
        raise NotLowRankError("DoRA")
    make = _MAKERS.get(kind.name)
    if make is None:
        raise NotLowRankError(kind.name)
    single = {role: float(values[role].reshape(())) for role in SINGLE if role in values}
    ratio = ratio_of(kind, {**values, **single}, of_settings)
    with np.errstate(over="ignore", invalid="ignore"):  # which is checked below
        floats = {role: value.astype(np.float32) for role, value in values.items()}
        down, up = make(floats)
        up = up * np.float32(ratio)
    _check_shapes(down, up, shape)
    taps = max(shape.taps, 1)
    if kind.name != LORA and len(down) > min(shape.outputs, shape.inputs * taps):
        raise NotLowRankError(f"{kind.name} of rank {len(down)}, more than the layer's own")
    if not (np.isfinite(up).all() and np.isfinite(down).all()):
        raise ValueError("its factors are too large for float32")
    return Pair(down.reshape(len(down), shape.inputs, *shape.kernel), up)


def _values(tensors: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
    for role, tensor in tensors.items():
        if not tensor.is_float and role not in SINGLE:
            raise ValueError(f"its {role} is {tensor.dtype}, so the file is quantised")
    values = {role: tensor.values() for role, tensor in tensors.items()}
    for role, value in values.items():
        if not np.isfinite(value).all():
            raise ValueError("it holds NaN or infinity")
        if role in SINGLE and value.size != 1:
            raise ValueError(f"{role} has {value.size} values, expected one")
    return values


def _check_shapes(down: np.ndarray, up: np.ndarray, shape: LayerShape) -> None:
    if not down.size or not up.size or up.shape != (shape.outputs, len(down)):
        raise ValueError(
            f"expected factors of {shape.outputs} outputs, got {up.shape} and {down.shape}"
        )
    kernel = shape.kernel or (1, 1)
    fits = down.ndim != 4 or down.shape[2:] == kernel
    if down[0].size != shape.inputs * max(shape.taps, 1) or not fits:
        where = f" and a kernel of {kernel}" if shape.kernel else ""
        raise ValueError(f"expected factors of {shape.inputs} inputs{where}, got {down.shape}")


def _lora(factors: Factors) -> Pair:
    down, up = factors["down"], factors["up"]
    if min(down.ndim, up.ndim) < 2 or up.size != len(up) * len(down) or up.shape[1] != len(down):
        raise ValueError(f"shapes {up.shape} and {down.shape} do not multiply")
    up = up.reshape(len(up), -1)
    if "mid" not in factors:
        return Pair(down, up)
    middle = np.einsum("pqkl,qi->pikl", factors["mid"], down.reshape(len(down), -1))
    if up.shape[1:] != middle.shape[:1]:
        raise ValueError(f"shapes {up.shape} and {middle.shape} do not multiply")
    return Pair(middle, up)


def _loha(factors: Factors) -> Pair:
    first = _half(factors, "w1_a", "w1_b", "t1")
    second = _half(factors, "w2_a", "w2_b", "t2")
    if first.down.shape[1:] != second.down.shape[1:] or len(first.up) != len(second.up):
        raise ValueError(f"its halves have the shapes {first.down.shape}, {second.down.shape}")
    down = first.down[:, None] * second.down[None]
    up = first.up[:, :, None] * second.up[:, None]
    return Pair(down.reshape(-1, *down.shape[2:]), up.reshape(len(up), -1))


def _half(factors: Factors, a: str, b: str, middle: str) -> Pair:
    """A product of two matrices, with Tucker's tensor between them if there is one."""
    if middle in factors:
        down = np.einsum("pqkl,qi->pikl", factors[middle], factors[b])
        return Pair(down, np.ascontiguousarray(factors[a].T))
    return Pair(factors[b], factors[a])


def _lokr(factors: Factors) -> Pair:
    if "k_w1" in factors:
        first = _whole(factors["k_w1"])
    else:
        first = Pair(factors["k_w1_b"], factors["k_w1_a"])
    if "k_w2" in factors:
        second = _whole(factors["k_w2"])
    else:
        second = _half(factors, "k_w2_a", "k_w2_b", "k_t2")
    if first.down.ndim != 2:
        raise ValueError(f"the first factor has the shape {first.down.shape}")
    ones = (1,) * (second.down.ndim - 2)
    down = np.kron(first.down.reshape(*first.down.shape, *ones), second.down)
    return Pair(down, np.kron(first.up, second.up))


def _whole(matrix: np.ndarray) -> Pair:
    """A matrix, or a kernel, times the smaller identity."""
    outputs, inputs = matrix.shape[:2]
    if matrix.ndim == 2 and inputs < outputs:
        return Pair(np.eye(inputs, dtype=np.float32), matrix)
    return Pair(matrix, np.eye(outputs, dtype=np.float32))


_MAKERS = {LORA: _lora, LOHA: _loha, LOKR: _lokr}
