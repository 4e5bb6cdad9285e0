"""Nodes of an ONNX file that TensorRT's parser rejects, with the export option that avoids them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sdexport.engines.messages import one_line, plain
from sdexport.engines.onnx_file.operators import DECLARED

MOST_NODES = 6
"""Operators that a message names: a graph may have the same problem at many nodes."""
_SINGLE = {"Attention", "Gelu", "GroupNormalization", "RMSNormalization", "RotaryEmbedding"}
"""Operators that older opsets write as several."""
_QUANTIZED = {
    *("DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits"),
    "QuantizeLinear",
}
_NO_REASON = ("false", "Plugin not found")
"""In place of a reason where the parser does not know the operator."""


class NodeError(NamedTuple):
    """An error of the parser. reason: in its own words."""

    operator: str
    node: str
    reason: str


def rejected_nodes(trt: Any, logger: Any, path: str) -> list[NodeError]:
    """The nodes of a graph that the parser rejects."""
    builder = trt.Builder(logger)
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger)
    parser.parse_from_file(path)
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    found = [NodeError(each.node_operator(), each.node_name(), each.desc()) for each in errors]
    return [error for error in found if error.operator]


def explained(errors: Sequence[NodeError]) -> str:
    """One line: each operator with its first node, the reason, and what avoids it."""
    first: dict[str, NodeError] = {}
    for error in errors:
        first.setdefault(error.operator, error)
    texts = [_text(error) for error in first.values()]
    rest = [f"and {len(texts) - MOST_NODES} more"] if len(texts) > MOST_NODES else []
    return "; ".join(texts[:MOST_NODES] + rest)


def _text(error: NodeError) -> str:
    unknown = any(error.reason == text or text in error.reason for text in _NO_REASON)
    reason = "not supported" if unknown else one_line(error.reason, 200)
    operator, node = plain(error.operator), plain(error.node) or "without a name"
    return f"operator {operator} (node {node}): {reason}; {_advice(error.operator)}"


def _advice(operator: str) -> str:
    if operator in _SINGLE:
        return "--opset 18 exports it as several older operators"
    if operator in _QUANTIZED:
        return "--precision fp16 exports none"
    if operator not in DECLARED[""]:
        return "no export of sdexport writes it"
    return "no export option avoids it; --backend onnxruntime-cuda may have it"
