"""What must be known of an ONNX file before it is trusted, read without the onnx package.

Only the wire format of protocol buffers is needed: every message is a row of (field number, wire
type, value), and wire type 2 carries a length, so tensors are stepped over and never read.

Source: https://protobuf.dev/programming-guides/encoding, and onnx.proto for the field numbers.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# message -> {field number: message inside}; "key"/"value" mark the strings that are looked for
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {1: "key", 2: "value"},
}


def external_data_locations(path: str | Path) -> set[str]:
    """Every file name that the graph's tensors point to, as it stands in the file.

    Raises: ValueError: the file is not a well-formed protocol buffer (truncated, or another kind
      of file). FileNotFoundError: no such file.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is empty")
    locations: set[str] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        graphs = 0
        for number, start, end in fields(data, 0, len(data), path.name):
            graphs += number == 7
            inside = _FIELDS["Model"].get(number)
            if inside:
                _collect(data, inside, start, end, locations, path.name)
        if graphs != 1:
            raise ValueError(f"{path.name} is no ONNX model: it holds {graphs} graphs")
    return locations


def _collect(
    data: mmap.mmap, message: str, start: int, end: int, found: set[str], name: str, depth: int = 0
) -> None:
    if depth > 100:
        raise ValueError(f"{name} is nested too deeply for a protocol buffer")
    if message == "Entry":
        texts = {_FIELDS["Entry"].get(n): data[a:b] for n, a, b in fields(data, start, end, name)}
        if texts.get("key") == b"location":
            found.add(texts.get("value", b"").decode("utf-8", "replace"))
        return
    for number, a, b in fields(data, start, end, name):
        inside = _FIELDS[message].get(number)
        if inside:
            _collect(data, inside, a, b, found, name, depth + 1)


def fields(data: mmap.mmap, start: int, end: int, name: str) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, first byte, end) of each length-delimited field of one message."""
    at = start
    while at < end:
        tag, at = varint(data, at, end, name)
        wire = tag & 7
        if not 8 <= tag < 2**32:  # readers disagree about such tags: one could hide a field
            raise ValueError(f"{name} is no ONNX model, or a damaged one (field tag {tag})")
        if wire == 0:
            _, at = varint(data, at, end, name)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            length, at = varint(data, at, end, name)
            if at + length > end:
                break
            yield tag >> 3, at, at + length
            at += length
        else:
            raise ValueError(f"{name} is no ONNX model, or a damaged one (wire type {wire})")
    if at != end:
        raise ValueError(f"{name} is truncated or damaged: a field runs past the end")


def varint(data: mmap.mmap, at: int, end: int, name: str) -> tuple[int, int]:
    """The number that begins at a byte, and where the next one begins."""
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
