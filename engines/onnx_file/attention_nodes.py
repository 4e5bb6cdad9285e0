"""A graph whose attention nodes are written as matrix products and softmax.

Opset 23 has attention as one operator, for which some engines have no kernel. A node is replaced if
it has no mask, is not causal, and its inputs have the heads as an axis of their own, as many for
keys as for queries; that is every one of a UNet and a VAE, and those of text encoders have masks.

Source: Vaswani et al., "Attention Is All You Need", equation 1; the ONNX operator Attention-23.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sdexport.engines.onnx_file.replaced_nodes import attributes, names, replaced_nodes
from sdexport.engines.onnx_file.wire_format import DataType, Node, Slice
from sdexport.engines.onnx_file.wire_writer import (
    float_attribute,
    int_attribute,
    ints_attribute,
    node,
)

_OPERATOR = "Attention"
_ZERO = ("is_causal", "softcap", "qk_matmul_output_mode")
"""Attributes that must be 0 or missing."""
_SCALE, _PRECISION = "scale", "softmax_precision"


def spelled_out(model: Path | bytes, name: str) -> bytes | None:
    """The model as described above, as a ModelProto; None if there is nothing to replace.

    For the arguments and what is raised see replaced_nodes.
    """
    return replaced_nodes(model, name, _replaced)


def _replaced(attention: Slice) -> bytes:
    """The nodes in place of one; b"" if it stays."""
    if attention.text(Node.OP_TYPE) != _OPERATOR or attention.text(Node.DOMAIN):
        return b""
    inputs, outputs = names(attention, Node.INPUT), names(attention, Node.OUTPUT)
    settings = dict(attributes(attention))
    scale, precision = settings.pop(_SCALE, 0.0), settings.pop(_PRECISION, 0)
    plain = settings.keys() <= {*_ZERO} and not any(settings.values())
    if not plain or len(inputs) != 3 or len(outputs) != 1 or not all(inputs):
        return b""
    return b"".join(_nodes(inputs, outputs[0], scale, in_float=precision == DataType.FLOAT))


def _nodes(inputs: Sequence[str], output: str, scale: float, *, in_float: bool) -> Iterator[bytes]:
    """softmax(scale query key^T) value, with scale = 1 / sqrt(size of a head) unless it is given.

    Args:
      in_float: compute softmax in float32, whatever the type of the inputs.
    """
    query, key, value = inputs

    def new(suffix: str) -> str:
        return f"sdexport/{output}/{suffix}"

    if scale:
        yield node("Constant", [], new("scale"), float_attribute("value_float", scale))
    else:
        yield node("Shape", [query], new("size"), int_attribute("start", 3))
        to_float = int_attribute("to", DataType.FLOAT)
        yield node("Cast", [new("size")], new("float_size"), to_float)
        yield node("Sqrt", [new("float_size")], new("root"))
        yield node("Reciprocal", [new("root")], new("scale"))
    yield node("CastLike", [new("scale"), query], new("own_scale"))
    yield node("Mul", [query, new("own_scale")], new("query"))
    yield node("Transpose", [key], new("key"), ints_attribute("perm", [0, 1, 3, 2]))
    yield node("MatMul", [new("query"), new("key")], scores := new("scores"))
    if in_float:
        yield node("Cast", [scores], new("float_scores"), int_attribute("to", DataType.FLOAT))
        yield node("Softmax", [new("float_scores")], new("float_weights"))
        yield node("CastLike", [new("float_weights"), query], new("weights"))
    else:
        yield node("Softmax", [scores], new("weights"))
    yield node("MatMul", [new("weights"), value], output)
