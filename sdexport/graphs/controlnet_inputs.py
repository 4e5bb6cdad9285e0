"""A UNet that takes the residuals of ControlNets as inputs of its graph.

The levels that go up read the skip connections by concatenating each, in reverse order, with what
comes from the level before; the first one comes from the middle block. So the residuals are added
to the inputs of these concatenations.

Source: Zhang et al. 2023, arXiv 2302.05543, section 3.2.
"""

from __future__ import annotations

from types import SimpleNamespace

import onnx_ir as ir

from sdexport.engines.errors import CheckpointError
from sdexport.graphs.controlnet_parts import residual_specs
from sdexport.graphs.onnx_nodes import NodeBuilder
from sdexport.runtime.models.components import MID_RESIDUAL

_FLOAT = ir.DataType.FLOAT
_HIDDEN, _SKIP = 0, 1
"""Inputs of a concatenation: what comes from the level before, and the skip connection."""


def add_controlnet_inputs(graph: ir.Graph, config: SimpleNamespace) -> None:
    """Give the graph of a UNet an input for each residual.

    Args:
      config: of the UNet.
    Raises: CheckpointError: it does not have the skip connections of its configuration.
    """
    *down, mid = residual_specs(config)
    found = _concatenations(graph)
    widths = [width for _, width in found]
    expected = _expected_widths(config, [int(spec.shape[1]) for spec in down])
    if widths != expected:
        raise CheckpointError(
            f"{graph.name}: its skip connections have {widths} channels, expected {expected}; it "
            "cannot take ControlNets"
        )
    values = {}
    for spec in (*down, mid):
        value = ir.Value(name=spec.name, type=ir.TensorType(_FLOAT), shape=ir.Shape(spec.shape))
        graph.inputs.append(value)
        values[spec.name] = value
    for (node, _), spec in zip(found, reversed(down), strict=True):
        _add(graph, node, _SKIP, values[spec.name])
    _add(graph, found[0][0], _HIDDEN, values[MID_RESIDUAL])


def _concatenations(graph: ir.Graph) -> list[tuple[ir.Node, int]]:
    """The concatenations with skip connections, in their order, each with its channels."""
    found = []
    for node in graph:
        axis = node.attributes.get("axis")
        if node.op_type == "Concat" and axis is not None and axis.as_int() == 1:
            width = _channels(node.outputs[0])
            if width is not None and len(node.inputs) == 2:
                found.append((node, width))
    return found


def _channels(value: ir.Value) -> int | None:
    """The channels that the convolutions take which read a value; None if none does."""
    for user in value.consumers():
        if user.op_type == "Conv":
            shape = _weight_shape(user.inputs[1])
            return None if shape is None else shape[1]
        if user.op_type == "Cast" and (found := _channels(user.outputs[0])) is not None:
            return found
    return None


def _weight_shape(weight: ir.Value | None) -> tuple[int, ...] | None:
    producer = None if weight is None else weight.producer()
    if producer is not None and producer.op_type in ("DequantizeLinear", "Cast"):
        return _weight_shape(producer.inputs[0])
    constant = None if weight is None else weight.const_value
    return None if constant is None else tuple(constant.shape.numpy())


def _expected_widths(config: SimpleNamespace, skips: list[int]) -> list[int]:
    """The channels of each concatenation: of what comes from before, and of the skip connection."""
    levels = list(reversed(config.block_out_channels))
    layers = config.layers_per_block
    each = [layers] * len(levels) if isinstance(layers, int) else list(reversed(layers))
    outputs = [width for width, count in zip(levels, each, strict=True) for _ in range(count + 1)]
    before = [levels[0], *outputs[:-1]]
    return [a + b for a, b in zip(before, reversed(skips), strict=True)]


def _add(graph: ir.Graph, node: ir.Node, place: int, residual: ir.Value) -> None:
    """Add a residual to an input of a node, in the type of that input."""
    value = node.inputs[place]
    assert value is not None  # a concatenation has all its inputs
    builder = NodeBuilder(f"residual.{residual.name}", graph)
    dtype = _dtype(node)
    cast = residual if dtype == _FLOAT else builder.add("Cast", [residual], to=int(dtype))
    total = builder.add("Add", [value, cast])
    total.type = value.type
    graph.insert_before(node, builder.nodes)
    node.replace_input_with(place, total)


def _dtype(node: ir.Node) -> ir.DataType:
    """The type that a concatenation has, which its convolution has too, unless it is converted."""
    for user in node.outputs[0].consumers():
        if user.op_type == "Conv":
            weight = user.inputs[1]
            producer = None if weight is None else weight.producer()
            if producer is not None and producer.op_type == "DequantizeLinear":
                weight = producer.inputs[1]
            if weight is not None and weight.const_value is not None:
                return weight.const_value.dtype
    return node.outputs[0].dtype or _FLOAT
