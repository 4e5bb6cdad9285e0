"""How large tensors and outputs of operators are, by what a graph says of them."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

MAX_RANK = 64
MAX_ELEMENTS = 2**28
"""Of a tensor whose size is written in the graph but whose data is not: 1 GiB of float32."""
MAX_GROWTH = 2**12
"""How many times larger an operator may make its input. Upsampling has 4."""

BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
    15: 128,
}
"""Bits of an element of each type but strings."""
STRING, _FLOAT, _INT64 = 8, 1, 7
SIZED = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Tile": (1,),
    "Resize": (2, 3),
    "Upsample": (1,),
    "Pad": (1,),
    "OneHot": (1,),
    "Range": (0, 1, 2),
}
"""Operators whose output is as large as numbers say, and which inputs have these numbers."""


def growth(operator: str, index: int, values: Sequence[float]) -> str:
    """What is wrong with the numbers that say how large an output is; "" if nothing is."""
    product = math.prod(max(abs(value), 1) for value in values)
    by_factor = operator in ("Tile", "Upsample") or (operator == "Resize" and index == 2)
    if by_factor and product > MAX_GROWTH:
        return f"makes its input {counted(product)} times larger"
    if not by_factor and product > MAX_ELEMENTS:
        return f"makes {counted(product)} elements"
    return ""


def numbers(content: bytes, kind: int) -> list[float]:
    """The values of a small tensor of 64-bit integers or floats; of other types none."""
    if kind not in (_INT64, _FLOAT):
        return []
    form, size = ("q", 8) if kind == _INT64 else ("f", 4)
    count = len(content) // size
    values = struct.unpack(f"<{count}{form}", content[: count * size])
    return [value if math.isfinite(value) else math.inf for value in values]


def data_size(elements: int, kind: int) -> int:
    """Bytes of that many elements of a TensorProto.DataType."""
    return -(-elements * BITS.get(kind, 8) // 8)


def counted(number: float) -> str:
    """A number of elements, which may be beyond all bounds, for a message."""
    return str(int(number)) if number < 1e12 else f"{min(number, 1e300):.1e}"
