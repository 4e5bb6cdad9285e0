"""A graph with some of its nodes replaced by others, without the onnx package.

Source: https://protobuf.dev/programming-guides/encoding, and onnx.proto for the field numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.wire_format import (
    Attribute,
    Graph,
    Model,
    Node,
    Opset,
    Slice,
    open_model,
)
from sdexport.engines.onnx_file.wire_writer import field

Replace = Callable[[Slice], bytes]
"""The nodes in place of one, as fields of the graph; b"" if it stays."""


def replaced_nodes(
    model: Path | bytes, name: str, replace: Replace, *, opset: int = 0
) -> bytes | None:
    """The model with the nodes that `replace` replaces; None if there are none.

    Nodes of subgraphs and functions stay.

    Args:
      model: the file, or its content; external data stays where it is.
      name: of the component, for messages.
      opset: of ONNX's own operators, below which nothing is replaced.
    Returns: a ModelProto.
    Raises: EngineError: not a well-formed ONNX model. FileNotFoundError: no such file.
    """
    try:
        if isinstance(model, bytes):
            return _model(Slice(model, 0, len(model), name), replace, opset)
        with open_model(model) as opened:
            return _model(opened, replace, opset)
    except ValueError as error:
        raise EngineError(f"{name}: {error}") from None


def names(node: Slice, wanted: int) -> list[str]:
    """The inputs or outputs of a node, without those at the end that are left out."""
    found = [value.content().decode() for number, value in node.fields() if number == wanted]
    while found and not found[-1]:
        found.pop()
    return found


def attributes(node: Slice) -> Iterator[tuple[str, float]]:
    """Name and number of each attribute; 0 for those that are no number."""
    for number, attribute in node.fields():
        if number == Node.ATTRIBUTE:
            name = attribute.text(Attribute.NAME)
            yield name, attribute.integer(Attribute.INTEGER) or _float(attribute)


def _model(model: Slice, replace: Replace, opset: int) -> bytes | None:
    graph = model.only(Model.GRAPH)
    nodes = (value for number, value in graph.fields() if number == Graph.NODE)
    if _opset(model) < opset or not any(replace(each) for each in nodes):
        return None
    return b"".join(
        field(number, _graph(value, replace)) if number == Model.GRAPH else whole.content()
        for number, value, whole in model.every_field()
    )


def _opset(model: Slice) -> int:
    imports = (value for number, value in model.fields() if number == Model.OPSET_IMPORT)
    own = (each for each in imports if not each.text(Opset.DOMAIN))
    return max((each.integer(Opset.VERSION) or 0 for each in own), default=0)


def _graph(graph: Slice, replace: Replace) -> bytes:
    return b"".join(
        (replace(value) if number == Graph.NODE else b"") or whole.content()
        for number, value, whole in graph.every_field()
    )


def _float(attribute: Slice) -> float:
    found = 0.0
    for number, value, _ in attribute.every_field():
        if number == Attribute.FLOAT and value.end - value.start == 4:
            (found,) = struct.unpack("<f", value.content())
    return found
