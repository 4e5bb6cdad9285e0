"""The fields of messages in bytes: the fastest that Python reads them, for walks of whole graphs.

wire_format has the objects for everything else.

Source: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from sdexport.engines.onnx_file.wire_format import varint

Bytes = bytes | mmap.mmap
_LEAST_TAG, _TAGS = 8, 2**32
"""Tags are from the first to below the second."""


def fields(data: Bytes, at: int, end: int, name: str) -> Iterator[tuple[int, int, int]]:
    """Field number, start and end of each field of bytes; of a number (-field, value, -1).

    Args:
      name: of the file, for messages.
    Raises: ValueError: not a well-formed message.
    """
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = varint(data, at - 1, end, name)
        wire = tag & 7
        if not _LEAST_TAG <= tag < _TAGS:  # readers disagree about others: one could hide a field
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


def packed_integers(data: Bytes, at: int, end: int, name: str) -> list[int]:
    """The signed numbers of a packed field.

    Raises: ValueError: one has no end.
    """
    found = []
    while at < end:
        value, at = varint(data, at, end, name)
        found.append(signed(value))
    return found


def signed(value: int) -> int:
    """A 64-bit number as the signed one that it stands for."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def text(content: bytes) -> str:
    """A string; bytes that are no UTF-8 are replaced."""
    return content.decode("utf-8", "replace")
