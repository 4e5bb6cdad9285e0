"""Writing messages of an ONNX file without the onnx package; see wire_format.py for reading.

Source: https://protobuf.dev/programming-guides/encoding, and onnx.proto for the field numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sdexport.engines.onnx_file.wire_format import Attribute, Graph, Node

_LENGTH_DELIMITED, _FIXED32 = 2, 5
_FLOAT, _INT, _FLOATS, _INTS = 1, 2, 6, 7
"""AttributeProto.AttributeType."""
_ALL_BITS = 2**64 - 1


def field(number: int, content: bytes) -> bytes:
    """A field that holds bytes or a message."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def text(number: int, value: str) -> bytes:
    """A field that holds a string."""
    return field(number, value.encode())


def integer(number: int, value: int) -> bytes:
    """A field that holds a number of 64 bits."""
    return _varint(number << 3) + _varint(value & _ALL_BITS)


def node(kind: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    """A node of a graph, as one of its fields; named after its output."""
    return field(
        Graph.NODE,
        b"".join(
            (
                *(text(Node.INPUT, name) for name in inputs),
                text(Node.OUTPUT, output),
                text(Node.NAME, f"{output}.{kind}"),
                text(Node.OP_TYPE, kind),
                *(field(Node.ATTRIBUTE, attribute) for attribute in attributes),
            )
        ),
    )


def int_attribute(name: str, value: int) -> bytes:
    """An attribute of a node."""
    fields = (text(Attribute.NAME, name), integer(Attribute.INTEGER, value))
    return b"".join((*fields, integer(Attribute.TYPE, _INT)))


def ints_attribute(name: str, values: Sequence[int]) -> bytes:
    """An attribute of a node."""
    fields = (integer(Attribute.INTS, value) for value in values)
    return b"".join((text(Attribute.NAME, name), *fields, integer(Attribute.TYPE, _INTS)))


def float_attribute(name: str, value: float) -> bytes:
    """An attribute of a node."""
    number = _varint(Attribute.FLOAT << 3 | _FIXED32) + struct.pack("<f", value)
    return b"".join((text(Attribute.NAME, name), number, integer(Attribute.TYPE, _FLOAT)))


def floats_attribute(name: str, values: Sequence[float]) -> bytes:
    """An attribute of a node."""
    numbers = struct.pack(f"<{len(values)}f", *values)
    fields = text(Attribute.NAME, name), field(Attribute.FLOATS, numbers)
    return b"".join((*fields, integer(Attribute.TYPE, _FLOATS)))


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
