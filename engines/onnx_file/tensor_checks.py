"""Tensors of an ONNX file: whether their data is as large as their sizes say, and where it is.

Source: onnx.proto for the layout of a tensor's data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sdexport.engines.onnx_file.message_fields import (
    Bytes,
    fields,
    packed_integers,
    signed,
    text,
)
from sdexport.engines.onnx_file.tensor_sizes import (
    BITS,
    MAX_ELEMENTS,
    MAX_RANK,
    STRING,
    counted,
    data_size,
    numbers,
)
from sdexport.engines.onnx_file.wire_format import Entry, SparseTensor, Tensor
from sdexport.engines.printable_text import escaped

_TYPED = frozenset(
    (
        Tensor.FLOAT_DATA,
        Tensor.INT32_DATA,
        Tensor.INT64_DATA,
        Tensor.DOUBLE_DATA,
        Tensor.UINT64_DATA,
    )
)
_PROBLEMS = 10
"""That are listed."""
LARGEST_CONSTANT = 256
"""Bytes of a tensor whose values are read: it may be a shape."""


@dataclass(frozen=True)
class ExternalTensor:
    """Where the data of a tensor is: a file name as the graph has it, and bytes of that file.

    kind: TensorProto.DataType. dims: its shape.
    """

    name: str
    location: str
    offset: int
    size: int
    kind: int = 0
    dims: tuple[int, ...] = ()


@dataclass
class TensorChecks:
    """Checks the tensors of one file, and collects what it finds.

    Attributes:
      name: of the file, for messages.
      external: tensors whose data is in other files.
      locations: every file name that tensors refer to, exactly as the file has it.
      problems: sizes that no model needs or that contradict each other, in words.
      constants: the values of small tensors, by name.
    """

    name: str
    external: list[ExternalTensor] = field(default_factory=list)
    locations: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    constants: dict[str, list[list[float]]] = field(default_factory=dict)

    def tensor(self, data: Bytes, start: int, end: int) -> tuple[str, list[float]]:
        """Check a tensor.

        Returns: its name, and its values if they are few numbers.
        """
        dims: list[int] = []
        kind, typed, strings = 0, 0, 0
        raw: tuple[int, int] | None = None
        values: list[float] = []
        name, place = "", {}
        for number, at, stop in fields(data, start, end, self.name):
            if abs(number) == Tensor.DIMS:
                self._add_sizes(dims, data, at, stop)
            elif number == -Tensor.DATA_TYPE:
                kind = at & 0xFFFFFFFF
            elif number == Tensor.RAW_DATA:
                raw = at, stop
            elif number == Tensor.NAME:
                name = text(data[at:stop])
            elif number == Tensor.EXTERNAL_DATA:
                key, value = self._entry(data, at, stop)
                place[key] = value
                if key == "location":
                    self.locations.add(value)
            elif abs(number) in _TYPED:
                typed += stop - at if stop >= 0 else 8
                if number == Tensor.INT64_DATA and len(values) < LARGEST_CONSTANT:
                    short = 0 <= stop - at <= LARGEST_CONSTANT
                    values += packed_integers(data, at, stop, self.name) if short else []
            elif number == Tensor.STRING_DATA:
                strings += 1
        what = f"tensor '{name:.80}'"
        elements = self._elements(what, dims)
        if elements is None:
            return name, []
        size = data_size(elements, kind)
        if place:
            self._external_tensor(name, place, size, kind, dims)
        elif raw is not None and kind in BITS:
            if raw[1] - raw[0] != size:
                self.add(f"{what} has {raw[1] - raw[0]} bytes, not {counted(size)}")
        elif elements > (strings if kind == STRING else 8 * typed):
            self.add(f"{what} has no data for its {counted(elements)} elements")
        if raw is not None and raw[1] - raw[0] <= LARGEST_CONSTANT:
            values = numbers(data[raw[0] : raw[1]], kind)
        if name and values:
            self.constants.setdefault(name, []).append(values)
        return name, values

    def sparse(self, data: Bytes, start: int, end: int) -> None:
        """Check a sparse tensor.

        Raises: ValueError: it has two tensors of values or indices.
        """
        dims: list[int] = []
        seen = set()
        for number, at, stop in fields(data, start, end, self.name):
            if number in (SparseTensor.VALUES, SparseTensor.INDICES):
                if number in seen:
                    raise ValueError(f"{self.name} is damaged: a field is repeated")
                seen.add(number)
                self.tensor(data, at, stop)
            elif abs(number) == SparseTensor.DIMS:
                self._add_sizes(dims, data, at, stop)
        self.bound("a sparse tensor", dims)

    def bound(self, what: str, dims: Sequence[int]) -> None:
        """Check the sizes of a tensor whose data is not in the file."""
        elements = self._elements(what, dims)
        if elements is not None and elements > MAX_ELEMENTS:
            self.add(f"{what} has {counted(elements)} elements ({_shown(dims)})")

    def add(self, problem: str) -> None:
        """Add a problem to the list, if it is not long already."""
        if len(self.problems) < _PROBLEMS:
            self.problems.append(escaped(problem))

    def _external_tensor(
        self, name: str, place: dict[str, str], size: int, kind: int, dims: Sequence[int]
    ) -> None:
        texts = place.get("offset", "0"), place.get("length", str(size))
        if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in texts):
            self.add(f"tensor '{name:.80}' has no valid offset or length")
            return
        offset, length = map(int, texts)
        if length != size:
            self.add(f"tensor '{name:.80}' has {length} bytes, not {counted(size)}")
        location = place.get("location", "")
        self.external.append(
            ExternalTensor(name, location, offset, max(length, size), kind, tuple(dims))
        )

    def _entry(self, data: Bytes, start: int, end: int) -> tuple[str, str]:
        texts = {n: text(data[at:stop]) for n, at, stop in fields(data, start, end, self.name)}
        return texts.get(Entry.KEY, ""), texts.get(Entry.VALUE, "")

    def _elements(self, what: str, dims: Sequence[int]) -> int | None:
        if any(dim < 0 for dim in dims) or len(dims) > MAX_RANK:
            self.add(f"{what} has the sizes {_shown(dims)}")
            return None
        return math.prod(dims)

    def _add_sizes(self, dims: list[int], data: Bytes, at: int, stop: int) -> None:
        """Add a dimension, or several that are packed; too many are found by `_elements`."""
        if len(dims) <= MAX_RANK:
            packed = stop >= 0
            dims += (
                packed_integers(data, at, min(stop, at + 1000), self.name)
                if packed
                else [signed(at)]
            )


def _shown(dims: Sequence[int]) -> str:
    return "x".join(map(str, dims[:8])) + ("x..." if len(dims) > 8 else "")
