"""Inputs and outputs of an ONNX file with their dimension names, read without the onnx package.

OpenVINO and TensorRT forget the names of dynamic dimensions; a session needs them to say which
sizes must be equal.

Source: onnx.proto for the field numbers.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.wire_format import fields, varint
from sdexport.engines.session import ANY_SIZE, TensorSpec

_GRAPH, _INITIALIZER, _INPUT, _OUTPUT = 7, 5, 11, 12
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}

Specs = tuple[TensorSpec, ...]


def graph_specs(path: str | Path) -> tuple[Specs, Specs]:
    """Inputs and outputs of the graph; inputs that have an initializer are left out.

    Raises: EngineError: the file is not a well-formed ONNX model. FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data, path.name)
    except ValueError as error:
        found = "is empty" if path.stat().st_size == 0 else str(error).removeprefix(path.name)
        raise EngineError(f"{path.parent.name or path.stem}: {path.name} {found.strip()}") from None


def _read(data: mmap.mmap, name: str) -> tuple[Specs, Specs]:
    graph = _only(data, 0, len(data), _GRAPH, name)
    inputs, outputs, constants = [], [], set()
    for number, start, end in fields(data, *graph, name):
        if number == _INPUT:
            inputs.append(_spec(data, start, end, name))
        elif number == _OUTPUT:
            outputs.append(_spec(data, start, end, name))
        elif number == _INITIALIZER:
            constants.add(_text(data, start, end, 8, name))
    return tuple(spec for spec in inputs if spec.name not in constants), tuple(outputs)


def _spec(data: mmap.mmap, start: int, end: int, name: str) -> TensorSpec:
    """ValueInfoProto: 1 name, 2 type; TypeProto: 1 tensor; Tensor: 1 elem_type, 2 shape."""
    tensor = _only(data, *_only(data, start, end, 2, name), 1, name)
    shape: list[int | str] = []
    for number, a, b in fields(data, *_only(data, *tensor, 2, name), name):
        if number == 1:
            size = number_field(data, a, b, 1, name)
            shape.append(_text(data, a, b, 2, name) or ANY_SIZE if size is None else size)
    code = number_field(data, *tensor, 1, name)
    return TensorSpec(
        _text(data, start, end, 1, name), _DTYPES.get(code or 0, f"type {code}"), tuple(shape)
    )


def _only(data: mmap.mmap, start: int, end: int, wanted: int, name: str) -> tuple[int, int]:
    found = [(a, b) for number, a, b in fields(data, start, end, name) if number == wanted]
    if len(found) != 1:
        raise ValueError(f"{name} is no ONNX model, or one with inputs that are no tensors")
    return found[0]


def _text(data: mmap.mmap, start: int, end: int, wanted: int, name: str) -> str:
    for number, a, b in fields(data, start, end, name):
        if number == wanted:
            return data[a:b].decode("utf-8", "replace")
    return ""


def number_field(data: mmap.mmap, start: int, end: int, wanted: int, name: str) -> int | None:
    """A varint field of a small message; what is not a varint is stepped over."""
    at, value = start, None
    while at < end:
        tag, at = varint(data, at, end, name)
        if tag & 7 == 0:
            found, at = varint(data, at, end, name)
            value = found if tag >> 3 == wanted else value
        elif tag & 7 == 2:
            length, at = varint(data, at, end, name)
            at += length
        else:
            at += 8 if tag & 7 == 1 else 4
    return value
