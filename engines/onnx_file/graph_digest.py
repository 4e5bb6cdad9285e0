"""What an ONNX graph is apart from its weights: two files with one digest can exchange them."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.graph_specs import number_field
from sdexport.engines.onnx_file.wire_format import fields

_GRAPH, _OPSETS, _FUNCTIONS = 7, 8, 25
_INITIALIZER = 5
_DATA_TYPE, _FLOAT_DATA, _RAW_DATA, _DOUBLE_DATA, _EXTERNAL, _LOCATION = 2, 4, 9, 10, 13, 14
_FLOATS = {1, 10, 11, 16}
_SCALAR = 4
"""Bytes up to which a float is a constant of the graph and no weight."""


def graph_digest(path: str | Path) -> str:
    """SHA-256 of nodes, inputs, outputs, opsets, and of every weight's name, type and shape.

    Values count where they are no weights: whole numbers, which may be shapes, and single floats.
    Raises: EngineError: the file is not a well-formed ONNX model. FileNotFoundError: no such file.
    Source: onnx.proto for the field numbers.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number, start, end in fields(data, 0, len(data), path.name):
                if number == _GRAPH:
                    _add_graph(digest, data, start, end, path.name)
                elif number in (_OPSETS, _FUNCTIONS):
                    digest.update(data[start:end])
    except ValueError as error:
        raise EngineError(f"{path.parent.name or path.stem}: {error}") from None
    return digest.hexdigest()


def _add_graph(digest: hashlib._Hash, data: mmap.mmap, start: int, end: int, name: str) -> None:
    at = start
    for number, a, b in fields(data, start, end, name):
        if number != _INITIALIZER or number_field(data, a, b, _DATA_TYPE, name) not in _FLOATS:
            digest.update(data[at:b])
        else:
            digest.update(b"weight")
            _add_weight(digest, data, a, b, name)
        at = b


def _add_weight(digest: hashlib._Hash, data: mmap.mmap, start: int, end: int, name: str) -> None:
    at = start
    for number, a, b in fields(data, start, end, name):
        values = number in (_FLOAT_DATA, _RAW_DATA, _DOUBLE_DATA) and b - a > _SCALAR
        if not values and number not in (_EXTERNAL, _LOCATION):
            digest.update(data[at:b])
        at = b
