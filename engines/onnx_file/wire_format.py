"""Reading messages of an ONNX file without the onnx package, and the numbers of their fields.

Only the wire format of protocol buffers is needed: a message is a sequence of (field number, wire
type, value), and wire type 2 has a length, so the data of tensors is skipped and never read.

Source: https://protobuf.dev/programming-guides/encoding, and onnx.proto for the field numbers.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from io import BufferedReader
from pathlib import Path

from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import open_guarded


class Model(IntEnum):
    """Fields of ModelProto."""

    GRAPH = 7
    OPSET_IMPORT = 8
    METADATA_PROPS = 14
    FUNCTIONS = 25


class Opset(IntEnum):
    """Fields of OperatorSetIdProto."""

    DOMAIN = 1
    VERSION = 2


class Graph(IntEnum):
    """Fields of GraphProto."""

    NODE = 1
    INITIALIZER = 5
    INPUT = 11
    OUTPUT = 12
    VALUE_INFO = 13
    SPARSE_INITIALIZER = 15


class Function(IntEnum):
    """Fields of FunctionProto."""

    NODE = 7
    ATTRIBUTE_PROTO = 11


class Node(IntEnum):
    """Fields of NodeProto."""

    INPUT = 1
    OUTPUT = 2
    NAME = 3
    OP_TYPE = 4
    ATTRIBUTE = 5
    DOMAIN = 7


class Attribute(IntEnum):
    """Fields of AttributeProto."""

    NAME = 1
    FLOAT = 2
    INTEGER = 3
    TENSOR = 5
    GRAPH = 6
    FLOATS = 7
    INTS = 8
    TENSORS = 10
    GRAPHS = 11
    TYPE = 20
    SPARSE_TENSOR = 22
    SPARSE_TENSORS = 23


class SparseTensor(IntEnum):
    """Fields of SparseTensorProto."""

    VALUES = 1
    INDICES = 2
    DIMS = 3


class Tensor(IntEnum):
    """Fields of TensorProto."""

    DIMS = 1
    DATA_TYPE = 2
    FLOAT_DATA = 4
    INT32_DATA = 5
    STRING_DATA = 6
    INT64_DATA = 7
    NAME = 8
    RAW_DATA = 9
    DOUBLE_DATA = 10
    UINT64_DATA = 11
    EXTERNAL_DATA = 13
    DATA_LOCATION = 14


class Entry(IntEnum):
    """Fields of StringStringEntryProto."""

    KEY = 1
    VALUE = 2


class ValueInfo(IntEnum):
    """Fields of ValueInfoProto."""

    NAME = 1
    TYPE = 2


class Type(IntEnum):
    """Fields of TypeProto."""

    TENSOR_TYPE = 1


class TensorType(IntEnum):
    """Fields of TypeProto.Tensor."""

    ELEM_TYPE = 1
    SHAPE = 2


class TensorShape(IntEnum):
    """Fields of TensorShapeProto."""

    DIM = 1


class Dimension(IntEnum):
    """Fields of TensorShapeProto.Dimension."""

    DIM_VALUE = 1
    DIM_PARAM = 2


class DataType(IntEnum):
    """TensorProto.DataType."""

    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    INT32 = 6
    INT64 = 7
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    BFLOAT16 = 16


_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
"""Wire types."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of a file that hold a message or a value; `name` is the file's, for messages."""

    data: bytes | mmap.mmap
    start: int
    end: int
    name: str

    def content(self) -> bytes:
        """A copy of the bytes."""
        return self.data[self.start : self.end]

    def fields(self) -> Iterator[tuple[int, Slice]]:
        """Number and value of each length-delimited field of a message.

        Raises: ValueError: not a well-formed message.
        """
        for number, wire, _, value in self._spans():
            if wire == _LENGTH_DELIMITED:
                yield number, value

    def every_field(self) -> Iterator[tuple[int, Slice, Slice]]:
        """Number, value and whole encoding of each field of a message, of every wire type.

        Raises: ValueError: not a well-formed message.
        """
        for number, _, start, value in self._spans():
            yield number, value, Slice(self.data, start, value.end, self.name)

    def _spans(self) -> Iterator[tuple[int, int, int, Slice]]:
        """Number, wire type, first byte and value of each field."""
        data, end, name = self.data, self.end, self.name
        at = self.start
        while at < end:
            start = at
            tag, at = varint(data, at, end, name)
            wire = tag & 7
            if not 8 <= tag < 2**32:  # readers disagree about such tags: one could hide a field
                raise ValueError(f"{name} is not an ONNX model, or is damaged (field tag {tag})")
            value_at = at
            if wire == _VARINT:
                _, at = varint(data, at, end, name)
            elif wire == _FIXED64:
                at += 8
            elif wire == _FIXED32:
                at += 4
            elif wire == _LENGTH_DELIMITED:
                length, value_at = varint(data, at, end, name)
                at = value_at + length
            else:
                raise ValueError(f"{name} is not an ONNX model, or is damaged (wire type {wire})")
            if at > end:
                break
            yield tag >> 3, wire, start, Slice(data, value_at, at, name)
        if at != end:
            raise ValueError(f"{name} is truncated or damaged: a field runs past the end")

    def only(self, wanted: int) -> Slice:
        """The value of a length-delimited field that must be there once.

        Raises: ValueError: it is missing or repeated.
        """
        values = [value for number, value in self.fields() if number == wanted]
        if len(values) != 1:
            raise ValueError(
                f"{self.name} is not an ONNX model, or has inputs that are not tensors"
            )
        return values[0]

    def text(self, wanted: int) -> str:
        """The first value of a string field; "" if there is none."""
        for number, value in self.fields():
            if number == wanted:
                return value.content().decode("utf-8", "replace")
        return ""

    def integer(self, wanted: int) -> int | None:
        """The last value of a varint field of a small message; None if there is none."""
        at, last = self.start, None
        while at < self.end:
            tag, at = varint(self.data, at, self.end, self.name)
            wire = tag & 7
            if wire == _VARINT:
                value, at = varint(self.data, at, self.end, self.name)
                last = value if tag >> 3 == wanted else last
            elif wire == _LENGTH_DELIMITED:
                length, at = varint(self.data, at, self.end, self.name)
                at += length
            else:
                at += 8 if wire == _FIXED64 else 4
        return last


@contextmanager
def open_model(path: Path) -> Iterator[Slice]:
    """Map an ONNX file into memory, as its ModelProto.

    Raises: FileNotFoundError: no such file. EngineError: it is no regular file. ValueError: it is
      empty.
    """
    with open_guarded(path, error=EngineError) as file, mapped_model(file, path.name) as model:
        yield model


@contextmanager
def mapped_model(file: BufferedReader, name: str) -> Iterator[Slice]:
    """The same for a file that is open.

    Raises: ValueError: it is empty.
    """
    if os.fstat(file.fileno()).st_size == 0:
        raise ValueError(f"{name} is empty")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield Slice(data, 0, len(data), name)


def varint(data: bytes | mmap.mmap, at: int, end: int, name: str) -> tuple[int, int]:
    """The number that begins at a byte, and where the next one begins.

    Raises: ValueError: it has no end.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"{name} is truncated or damaged: a number has no end")
