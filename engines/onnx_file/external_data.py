"""Which weight files an ONNX file refers to: what must be known before it is trusted."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from sdexport.engines.onnx_file.wire_format import INNER, Entry, Model, Slice, open_model

_MAX_DEPTH = 100
"""Of nested messages, as protocol buffers limit it."""


def external_data_locations(path: str | Path) -> set[str]:
    """Every file name that tensors of the graph refer to, exactly as the file has it.

    Raises: ValueError: not a well-formed ONNX model (truncated, or another kind of file).
      FileNotFoundError: no such file.
    """
    path = Path(path)
    locations: set[str] = set()
    with open_model(path) as model:
        graphs = 0
        for number, value in model.fields():
            graphs += number == Model.GRAPH
            message = INNER[Model].get(number)
            if message is not None:
                _collect(value, message, locations)
        if graphs != 1:
            raise ValueError(f"{path.name} is not an ONNX model: it has {graphs} graphs")
    return locations


def _collect(span: Slice, message: type[IntEnum], locations: set[str], depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{span.name} is nested too deeply for a protocol buffer")
    if message is Entry:
        texts = {number: value.content() for number, value in span.fields()}
        if texts.get(Entry.KEY) == b"location":
            locations.add(texts.get(Entry.VALUE, b"").decode("utf-8", "replace"))
        return
    inner = INNER[message]
    for number, value in span.fields():
        if number in inner:
            _collect(value, inner[number], locations, depth + 1)
