"""A graph whose group normalization is written with instance normalization.

ONNX Runtime has no kernel for GroupNormalization on the CPU: it computes the operator by its
definition, twelve operators over the whole image and as many copies. Instance normalization of an
image whose channels are the groups is one kernel.

Source: Wu and He, "Group Normalization", 2018, section 3; the ONNX operator GroupNormalization-21.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sdexport.engines.onnx_file.replaced_nodes import attributes, names, replaced_nodes
from sdexport.engines.onnx_file.wire_format import DataType, Node, Slice
from sdexport.engines.onnx_file.wire_writer import (
    float_attribute,
    floats_attribute,
    int_attribute,
    ints_attribute,
    node,
)

_OPERATOR, _CHANNEL_SCALES = "GroupNormalization", 21
"""The operator, and the opset from which on it takes a scale and a bias for each channel."""
_GROUPS, _EPSILON, _PRECISION = "num_groups", "epsilon", "stash_type"
_DEFAULT_EPSILON = 1e-5
_MOST_GROUPS = 1024
"""Each takes eight bytes in the new model."""


def with_instance_norms(model: Path | bytes, name: str) -> bytes | None:
    """The model as described above, as a ModelProto; None if there is nothing to replace.

    For the arguments and what is raised see replaced_nodes.
    """
    return replaced_nodes(model, name, _replaced, opset=_CHANNEL_SCALES)


def _replaced(norm: Slice) -> bytes:
    """The nodes in place of one; b"" if it stays."""
    if norm.text(Node.OP_TYPE) != _OPERATOR or norm.text(Node.DOMAIN):
        return b""
    inputs, outputs = names(norm, Node.INPUT), names(norm, Node.OUTPUT)
    settings = dict(attributes(norm))
    groups, precision = settings.get(_GROUPS, 0), settings.get(_PRECISION, DataType.FLOAT)
    plain = precision == DataType.FLOAT and 0 < groups <= _MOST_GROUPS
    if not plain or len(inputs) != 3 or len(outputs) != 1 or not all(inputs):
        return b""
    epsilon = settings.get(_EPSILON, _DEFAULT_EPSILON)
    return b"".join(_nodes(inputs, outputs[0], int(groups), epsilon))


def _nodes(inputs: Sequence[str], output: str, groups: int, epsilon: float) -> Iterator[bytes]:
    """scale (x - mean) / sqrt(variance + epsilon) + bias, with mean and variance of each group.

    The normalization is computed in float32, whatever the type of the inputs. Channels that are no
    multiple of the groups, and scales for another number of channels, fail in a call.
    """
    image, scale, bias = inputs

    def new(suffix: str) -> str:
        return f"sdexport/{output}/{suffix}"

    def constant(suffix: str, value: bytes) -> bytes:
        return node("Constant", [], new(suffix), value)

    yield node("Cast", [image], new("float"), int_attribute("to", DataType.FLOAT))
    yield constant("by_group", ints_attribute("value_ints", [0, groups, -1]))
    yield node("Reshape", [new("float"), new("by_group")], new("grouped"))
    yield constant("ones", floats_attribute("value_floats", [1.0] * groups))
    yield constant("zeros", floats_attribute("value_floats", [0.0] * groups))
    yield node(
        "InstanceNormalization",
        [new("grouped"), new("ones"), new("zeros")],
        new("even"),
        float_attribute("epsilon", epsilon),
    )
    yield constant("same", ints_attribute("value_ints", [0]))
    yield constant("rest", ints_attribute("value_ints", [-1]))
    yield constant("groups", ints_attribute("value_ints", [groups]))
    first, last = int_attribute("start", 1), int_attribute("end", 2)
    yield node("Shape", [image], new("image_channels"), first, last)
    yield node("Div", [new("image_channels"), new("groups")], new("in_group"))
    yield node("Mul", [new("in_group"), new("groups")], new("channels"))
    yield node(
        "Concat",
        [new("same"), new("channels"), new("rest")],
        new("by_channel"),
        int_attribute("axis", 0),
    )
    yield node("Reshape", [new("even"), new("by_channel")], new("channelwise"))
    yield node("CastLike", [new("channelwise"), scale], new("normal"))
    yield constant("axis", ints_attribute("value_ints", [1]))
    yield node("Unsqueeze", [scale, new("axis")], new("scale"))
    yield node("Unsqueeze", [bias, new("axis")], new("bias"))
    yield node("Mul", [new("normal"), new("scale")], new("scaled"))
    yield node("Add", [new("scaled"), new("bias")], new("moved"))
    yield node("Shape", [image], new("shape"))
    yield node("Reshape", [new("moved"), new("shape")], output)
