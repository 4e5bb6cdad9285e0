"""What an ONNX file consists of, found in one pass over it: operators, external data, sizes.

Only what describes the graph is read; the data of weights is skipped. A graph is surveyed before a
library opens it, because a few bytes can ask for any amount of work or memory.

Source: onnx.proto for the messages and the layout of a tensor's data.
"""

from __future__ import annotations

import math
import mmap
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sdexport.engines.guarded_files import FileIdentity
from sdexport.engines.onnx_file.tensor_sizes import (
    BITS,
    MAX_ELEMENTS,
    MAX_RANK,
    SIZED,
    STRING,
    counted,
    data_size,
    growth,
    numbers,
)
from sdexport.engines.onnx_file.wire_format import (
    Attribute,
    Dimension,
    Entry,
    Function,
    Graph,
    Model,
    Node,
    SparseTensor,
    Tensor,
    TensorShape,
    TensorType,
    Type,
    ValueInfo,
    open_model,
    varint,
)
from sdexport.engines.printable_text import escaped

MAX_DEPTH = 100
"""Of nested messages, as protocol buffers limit it."""
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
_LARGEST_CONSTANT = 256
"""Bytes of a tensor whose values are read: it may be a shape."""
_SMALL = 2**16
"""Bytes of a node that is copied."""

Bytes = bytes | mmap.mmap


@dataclass(frozen=True)
class ExternalTensor:
    """Where the data of a tensor is: a file name as the graph has it, and bytes of that file."""

    name: str
    location: str
    offset: int
    size: int


@dataclass
class GraphSurvey:
    """What was found.

    operators: how often each (domain, operator) is used; "" is the domain of ONNX.
    functions: how many functions the file defines for itself. depth: of graphs inside of operators.
    problems: sizes that no model needs or that contradict each other, in words.
    """

    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    external: list[ExternalTensor] = field(default_factory=list)
    locations: set[str] = field(default_factory=set)
    functions: int = 0
    depth: int = 0
    problems: list[str] = field(default_factory=list)


_REMEMBERED = 64
_SETTLED = 2 * 10**9
"""Nanoseconds after which a second change of a file shows in its time of change."""
_surveyed: dict[tuple[Path, FileIdentity], GraphSurvey] = {}
"""Results by file, as long as the files do not change."""


def survey(path: str | Path) -> GraphSurvey:
    """Survey an ONNX file.

    Raises: ValueError: not a well-formed ONNX model (truncated, or another kind of file).
      EngineError: no regular file. FileNotFoundError: no such file.
    """
    path = Path(path)
    with open_model(path) as model:
        key = path, FileIdentity.of(path.stat())
        if key in _surveyed:
            return _surveyed[key]
        found = _Survey(path.name).model(model.data, model.start, model.end)
        if time.time_ns() - key[1].mtime_ns > _SETTLED:
            if len(_surveyed) >= _REMEMBERED:
                _surveyed.clear()
            _surveyed[key] = found
        return found


@dataclass
class _NodeToCheck:
    """An operator whose output is as large as one of its inputs says."""

    operator: str
    inputs: list[str]


class _Survey:
    """One pass over a file; Python reads a graph of a thousand nodes so in about 20 ms."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found = GraphSurvey()
        self._constants: dict[str, list[list[float]]] = {}
        self._sized: list[_NodeToCheck] = []

    def model(self, data: Bytes, start: int, end: int) -> GraphSurvey:
        graphs = 0
        for number, at, stop in self._fields(data, start, end):
            if number == Model.GRAPH:
                graphs += 1
                self._graph(data, at, stop, 0)
            elif number == Model.FUNCTIONS:
                self._found.functions += 1
                self._function(data, at, stop)
        if graphs != 1:
            raise ValueError(f"{self._name} is not an ONNX model: it has {graphs} graphs")
        for node in self._sized:
            self._check_node(node)
        return self._found

    def _function(self, data: Bytes, start: int, end: int) -> None:
        for number, at, stop in self._fields(data, start, end):
            if number == Function.NODE:
                self._node(data, at, stop, 1)
            elif number == Function.ATTRIBUTE_PROTO:
                self._attribute(data, at, stop, 1)

    def _graph(self, data: Bytes, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"{self._name} is nested too deeply for a protocol buffer")
        self._found.depth = max(self._found.depth, depth)
        for number, at, stop in self._fields(data, start, end):
            if number == Graph.NODE:
                self._node(data, at, stop, depth)
            elif number == Graph.INITIALIZER:
                self._tensor(data, at, stop)
            elif number == Graph.SPARSE_INITIALIZER:
                self._sparse(data, at, stop)
            elif number in (Graph.INPUT, Graph.OUTPUT):
                self._value(data[at:stop])

    def _node(self, data: Bytes, start: int, end: int, depth: int) -> None:
        if end - start < _SMALL:  # bytes are faster than a mapped file
            data, start, end = data[start:end], 0, end - start
        operator, domain, inputs, outputs, attributes = b"", b"", [], [], []
        for number, at, stop in self._fields(data, start, end):
            if number == Node.INPUT:
                inputs.append(data[at:stop])
            elif number == Node.OUTPUT:
                outputs.append(data[at:stop])
            elif number == Node.OP_TYPE:
                operator = data[at:stop]
            elif number == Node.DOMAIN:
                domain = data[at:stop]
            elif number == Node.ATTRIBUTE:
                attributes.append((at, stop))
        key = _text(domain), _text(operator)
        if key[0] == "ai.onnx":  # another name of ""
            key = "", key[1]
        self._found.operators[key] += 1
        for at, stop in attributes:
            constant = self._attribute(data, at, stop, depth)
            if key == ("", "Constant") and constant is not None and outputs:
                self._constants.setdefault(_text(outputs[0]), []).append(constant)
        if key[1] in SIZED:
            self._sized.append(_NodeToCheck(key[1], list(map(_text, inputs))))

    def _attribute(self, data: Bytes, start: int, end: int, depth: int) -> list[float] | None:
        """Returns: the numbers in it, if they are few."""
        constant: list[float] | None = None
        seen = set()
        for number, at, stop in self._fields(data, start, end):
            if number in (Attribute.TENSOR, Attribute.GRAPH, Attribute.SPARSE_TENSOR):
                if number in seen:  # readers would join the two
                    raise ValueError(f"{self._name} is damaged: a field is repeated")
                seen.add(number)
            if number in (Attribute.TENSOR, Attribute.TENSORS):
                constant = self._tensor(data, at, stop)
            elif number in (Attribute.GRAPH, Attribute.GRAPHS):
                self._graph(data, at, stop, depth + 1)
            elif number in (Attribute.SPARSE_TENSOR, Attribute.SPARSE_TENSORS):
                self._sparse(data, at, stop)
            elif number == Attribute.INTS and stop - at <= _LARGEST_CONSTANT:
                constant = list(self._integers(data, at, stop))
            elif number == -Attribute.INTS:
                constant = [*(constant or [])[:_LARGEST_CONSTANT], _signed(at)]
            elif number == -Attribute.INTEGER:
                constant = [_signed(at)]
        return constant

    def _sparse(self, data: Bytes, start: int, end: int) -> None:
        dims: list[int] = []
        seen = set()
        for number, at, stop in self._fields(data, start, end):
            if number in (SparseTensor.VALUES, SparseTensor.INDICES):
                if number in seen:
                    raise ValueError(f"{self._name} is damaged: a field is repeated")
                seen.add(number)
                self._tensor(data, at, stop)
            elif abs(number) == SparseTensor.DIMS:
                self._add_sizes(dims, data, at, stop)
        self._bound("a sparse tensor", dims)

    def _value(self, data: bytes) -> None:
        """An input or output: the sizes that it is declared with."""
        name = ""
        dims: list[int] = []
        for number, at, stop in self._fields(data, 0, len(data)):
            if number == ValueInfo.NAME:
                name = _text(data[at:stop])
            elif number == ValueInfo.TYPE:
                dims += self._declared(data, at, stop)
        self._bound(f"'{name:.80}'", dims)

    def _declared(self, data: bytes, start: int, end: int) -> Iterator[int]:
        """Sizes in a TypeProto: tensor_type, its shape, dimensions, their values."""
        for number, at, stop in self._fields(data, start, end):
            if number == Type.TENSOR_TYPE:
                for inner, begin, finish in self._fields(data, at, stop):
                    if inner == TensorType.SHAPE:
                        yield from self._dimensions(data, begin, finish)

    def _dimensions(self, data: Bytes, start: int, end: int) -> Iterator[int]:
        for number, at, stop in self._fields(data, start, end):
            if number == TensorShape.DIM:
                for inner, value, _ in self._fields(data, at, stop):
                    if inner == -Dimension.DIM_VALUE:
                        yield _signed(value)

    def _tensor(self, data: Bytes, start: int, end: int) -> list[float] | None:
        """Check a tensor. Returns: its values, if they are few numbers."""
        dims: list[int] = []
        kind, typed, strings = 0, 0, 0
        raw: tuple[int, int] | None = None
        values: list[float] = []
        name, place = "", {}
        for number, at, stop in self._fields(data, start, end):
            if abs(number) == Tensor.DIMS:
                self._add_sizes(dims, data, at, stop)
            elif number == -Tensor.DATA_TYPE:
                kind = at & 0xFFFFFFFF
            elif number == Tensor.RAW_DATA:
                raw = at, stop
            elif number == Tensor.NAME:
                name = _text(data[at:stop])
            elif number == Tensor.EXTERNAL_DATA:
                key, value = self._entry(data, at, stop)
                place[key] = value
                if key == "location":
                    self._found.locations.add(value)
            elif abs(number) in _TYPED:
                typed += stop - at if stop >= 0 else 8
                if number == Tensor.INT64_DATA and len(values) < _LARGEST_CONSTANT:
                    short = 0 <= stop - at <= _LARGEST_CONSTANT
                    values += self._integers(data, at, stop) if short else []
            elif number == Tensor.STRING_DATA:
                strings += 1
        what = f"tensor '{name:.80}'"
        elements = self._elements(what, dims)
        if elements is None:
            return None
        size = data_size(elements, kind)
        if place:
            self._external_tensor(name, place, size)
        elif raw is not None and kind in BITS:
            if raw[1] - raw[0] != size:
                self._problem(f"{what} has {raw[1] - raw[0]} bytes, not {counted(size)}")
        elif elements > (strings if kind == STRING else 8 * typed):
            self._problem(f"{what} has no data for its {counted(elements)} elements")
        if raw is not None and raw[1] - raw[0] <= _LARGEST_CONSTANT:
            values = numbers(data[raw[0] : raw[1]], kind)
        if name and values:
            self._constants.setdefault(name, []).append(values)
        return values or None

    def _external_tensor(self, name: str, place: dict[str, str], size: int) -> None:
        texts = place.get("offset", "0"), place.get("length", str(size))
        if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in texts):
            self._problem(f"tensor '{name:.80}' has no valid offset or length")
            return
        offset, length = map(int, texts)
        if length != size:
            self._problem(f"tensor '{name:.80}' has {length} bytes, not {counted(size)}")
        self._found.external.append(
            ExternalTensor(name, place.get("location", ""), offset, max(length, size))
        )

    def _entry(self, data: Bytes, start: int, end: int) -> tuple[str, str]:
        texts = {
            number: _text(data[at:stop]) for number, at, stop in self._fields(data, start, end)
        }
        return texts.get(Entry.KEY, ""), texts.get(Entry.VALUE, "")

    def _elements(self, what: str, dims: list[int]) -> int | None:
        if any(dim < 0 for dim in dims) or len(dims) > MAX_RANK:
            self._problem(f"{what} has the sizes {_shown(dims)}")
            return None
        return math.prod(dims)

    def _bound(self, what: str, dims: list[int]) -> None:
        elements = self._elements(what, dims)
        if elements is not None and elements > MAX_ELEMENTS:
            self._problem(f"{what} has {counted(elements)} elements ({_shown(dims)})")

    def _problem(self, text: str) -> None:
        if len(self._found.problems) < _PROBLEMS:
            self._found.problems.append(escaped(text))

    def _check_node(self, node: _NodeToCheck) -> None:
        for index in SIZED[node.operator]:
            name = node.inputs[index] if index < len(node.inputs) else ""
            for values in self._constants.get(name, []) if name else []:
                problem = growth(node.operator, index, values)
                if problem:
                    self._problem(f"{node.operator}: {problem}")

    def _add_sizes(self, dims: list[int], data: Bytes, at: int, stop: int) -> None:
        """Add a dimension, or several that are packed; too many are found by `_elements`."""
        if len(dims) <= MAX_RANK:
            dims += [_signed(at)] if stop < 0 else self._integers(data, at, min(stop, at + 1000))

    def _integers(self, data: Bytes, at: int, end: int) -> list[int]:
        """The numbers of a packed field."""
        found = []
        while at < end:
            value, at = varint(data, at, end, self._name)
            found.append(_signed(value))
        return found

    def _fields(self, data: Bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Field number, start and end of each field of bytes; of a number (-field, value, -1).

        Raises: ValueError: not a well-formed message.
        """
        name = self._name
        while at < end:
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = varint(data, at - 1, end, name)
            wire = tag & 7
            if not 8 <= tag < 2**32:  # readers disagree about such tags: one could hide a field
                raise ValueError(f"{name} is not an ONNX model, or is damaged (field tag {tag})")
            if wire == 2:
                length = data[at] if at < end else 0x80
                at += 1
                if length >= 0x80:
                    length, at = varint(data, at - 1, end, name)
                stop = at + length
                if stop > end:
                    break
                yield tag >> 3, at, stop
                at = stop
            elif wire == 0:
                value, at = varint(data, at, end, name)
                yield -(tag >> 3), value, -1
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise ValueError(f"{name} is not an ONNX model, or is damaged (wire type {wire})")
        if at != end:
            raise ValueError(f"{name} is truncated or damaged: a field runs past the end")


def _signed(value: int) -> int:
    """A 64-bit number as the signed one that it stands for."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shown(dims: list[int]) -> str:
    return "x".join(map(str, dims[:8])) + ("x..." if len(dims) > 8 else "")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
