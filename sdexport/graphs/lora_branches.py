"""Linear and convolution layers that take the factors of a LoRA as inputs of the graph.

To the output of each layer is added

    x down up          of a linear layer; down (inputs, rank), up (n, rank, outputs)
    up (down * x)      of a convolution; down (rank * taps, inputs), up (n, outputs, rank)

where n is 1, or the number of rows in the batch; factors of several LoRAs are joined along the
rank, and their scales are in `up`. Taps are the places of a kernel, row by row. All factors are
float32, and computed with in the precision of the layer; int8 weights have a branch in float32.

Not every engine convolves with a kernel that is an input. So the kernel is applied as a product,
which gives a plane for each tap, and a convolution with a constant kernel shifts the planes and
adds them.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sdexport.engines.errors import CheckpointError
from sdexport.graphs.lora_layers import LoraLayer
from sdexport.graphs.onnx_nodes import NodeBuilder, weight_dtype
from sdexport.runtime.adapters.lora_inputs import DOWN, UP, LayerShape, input_name

_FLOAT = ir.DataType.FLOAT


def add_lora_inputs(graph: ir.Graph, layers: Sequence[LoraLayer]) -> None:
    """Give a graph the inputs of these layers, and add their branches.

    Raises: CheckpointError: the graph does not have the node of a layer.
    """
    nodes = {node.name: node for node in graph}
    for layer in layers:
        if layer.node not in nodes:
            raise CheckpointError(f"{graph.name}: no node {layer.node} for {layer.name}")
        _add_branch(graph, nodes[layer.node], layer)


def _add_branch(graph: ir.Graph, node: ir.Node, layer: LoraLayer) -> None:
    dtype = weight_dtype(node.inputs[1])
    builder = NodeBuilder(f"lora.{layer.name}", graph)
    factors = [_factor(graph, layer, which) for which in (DOWN, UP)]
    down, up = (
        factor if dtype == _FLOAT else builder.add("Cast", [factor], to=int(dtype))
        for factor in factors
    )
    if layer.kernel:
        branch = _convolution(builder, node, layer, down, up, dtype)
    else:
        branch = _linear(builder, node, layer, down, up)
    _add_to_output(graph, node, builder, branch)


def _factor(graph: ir.Graph, layer: LoraLayer, which: str) -> ir.Value:
    shape = LayerShape(layer.name, layer.inputs, layer.outputs, layer.kernel).of(which)
    name = input_name(layer.name, which)
    value = ir.Value(name=name, type=ir.TensorType(_FLOAT), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value


def _linear(
    builder: NodeBuilder, node: ir.Node, layer: LoraLayer, down: ir.Value, up: ir.Value
) -> ir.Value:
    low = builder.add("MatMul", [node.inputs[0], down])
    if layer.rank > 2:
        return builder.add("MatMul", [low, up])
    axis = builder.vector(1)
    rows = builder.add("MatMul", [builder.add("Unsqueeze", [low, axis]), up])
    return builder.add("Squeeze", [rows, axis])


def _convolution(
    builder: NodeBuilder,
    node: ir.Node,
    layer: LoraLayer,
    down: ir.Value,
    up: ir.Value,
    dtype: ir.DataType,
) -> ir.Value:
    source, taps = node.inputs[0], math.prod(layer.kernel)
    flat = builder.add("Reshape", [source, builder.vector(0, 0, -1)])
    low = builder.add("MatMul", [down, flat])
    strides = node.attributes.get("strides")
    if taps > 1 or (strides is not None and set(strides.as_ints()) != {1}):
        sides = builder.add("Shape", [source], start=2)
        planes = builder.add("Concat", [builder.vector(-1, taps), sides], axis=0)
        shifted = builder.add(
            "Conv",
            [builder.add("Reshape", [low, planes]), _shifts(builder, layer.kernel, dtype)],
            **_places(node),
        )
        batch = builder.add("Shape", [source], start=0, end=1)
        rank = builder.add("Shape", [up], start=2, end=3)
        rows = builder.add("Concat", [batch, rank, builder.vector(-1)], axis=0)
        low = builder.add("Reshape", [shifted, rows])
    result = builder.add("MatMul", [up, low])
    return builder.add("Reshape", [result, builder.add("Shape", [node.outputs[0]])])


def _shifts(builder: NodeBuilder, kernel: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
    """The constant kernel that puts the plane of each tap in its place, and adds them all."""
    taps = math.prod(kernel)
    values = np.eye(taps, dtype=dtype.numpy()).reshape(1, taps, *kernel)
    return builder.constant(f"lora.taps.{'x'.join(map(str, kernel))}", values)


def _places(node: ir.Node) -> dict[str, list[int]]:
    """Strides, pads and dilations of a convolution."""
    names = ("strides", "pads", "dilations")
    found = {name: node.attributes.get(name) for name in names}
    return {name: list(value.as_ints()) for name, value in found.items() if value is not None}


def _add_to_output(graph: ir.Graph, node: ir.Node, builder: NodeBuilder, branch: ir.Value) -> None:
    """Let everything that read the node's output read its sum with the branch."""
    (output,) = node.outputs
    uses = [(user, place) for user, place in output.uses() if user not in builder.nodes]
    total = builder.add("Add", [output, branch])
    total.type = output.type
    for user, place in uses:
        user.replace_input_with(place, total)
    graph.insert_after(node, builder.nodes)
    for place, value in enumerate(graph.outputs):
        if value is output:
            output.name, total.name = f"{output.name}.without_lora", output.name
            total.shape, output.shape = output.shape, None
            graph.outputs[place] = total
