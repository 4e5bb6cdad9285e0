"""The identity of an ONNX graph without its weights: files of one digest can exchange weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.wire_format import DataType, Graph, Model, Slice, Tensor, open_model

_FLOATS = {DataType.FLOAT, DataType.FLOAT16, DataType.DOUBLE, DataType.BFLOAT16}
_VALUES = {Tensor.FLOAT_DATA, Tensor.RAW_DATA, Tensor.DOUBLE_DATA}
_PLACES = {Tensor.EXTERNAL_DATA, Tensor.DATA_LOCATION}
_SCALAR = 4
"""Bytes up to which a float is a constant of the graph and not a weight."""


def graph_digest(path: str | Path) -> str:
    """SHA-256 of nodes, inputs, outputs, opsets, and of every weight's name, type and shape.

    Values that are not weights count too: integers, which may be shapes, and single floats.
    Raises: EngineError: not a well-formed ONNX model. FileNotFoundError: no such file.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        with open_model(path) as model:
            for number, value in model.fields():
                if number == Model.GRAPH:
                    _add_graph(digest, value)
                elif number in (Model.OPSET_IMPORT, Model.FUNCTIONS):
                    digest.update(value.content())
    except ValueError as error:
        raise EngineError(f"{path.parent.name or path.stem}: {error}") from None
    return digest.hexdigest()


def _add_graph(digest: hashlib._Hash, graph: Slice) -> None:
    at = graph.start
    for number, value in graph.fields():
        if number != Graph.INITIALIZER or value.integer(Tensor.DATA_TYPE) not in _FLOATS:
            digest.update(graph.data[at : value.end])  # with its tag
        else:
            digest.update(b"weight")
            _add_weight(digest, value)
        at = value.end


def _add_weight(digest: hashlib._Hash, tensor: Slice) -> None:
    at = tensor.start
    for number, value in tensor.fields():
        is_weight = number in _VALUES and value.end - value.start > _SCALAR
        if not is_weight and number not in _PLACES:
            digest.update(tensor.data[at : value.end])  # with its tag
        at = value.end
