"""Cross-attention with the keys and values of images as inputs of a UNet's graph.

The inputs are those of sdexport.runtime.adapters.ip_inputs. To the attention of each layer, before
its output layer, is added

    sum over groups of weights * softmax(query key^T / sqrt(size of a head) + bias) value

in float32, whatever the precision of the layer: of few tokens it costs little.

Source: Ye et al. 2023, arXiv 2308.06721, eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sdexport.graphs.lora_layers import LoraLayer
from sdexport.graphs.onnx_nodes import NodeBuilder, weight_dtype
from sdexport.graphs.unet_blocks import UnetBlocks, image_attention
from sdexport.runtime.adapters.ip_inputs import (
    BIAS,
    GROUPS,
    KEY,
    TOKENS,
    VALUE,
    ImageLayer,
    input_name,
    weights_name,
    weights_shape,
)

_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class _Images:
    """The inputs of one layer, float32."""

    key: ir.Value
    value: ir.Value
    bias: ir.Value
    weights: ir.Value


def add_ip_inputs(graph: ir.Graph, layers: Sequence[LoraLayer]) -> None:
    """Give a UNet's graph the inputs of IP-Adapters, and add their attention.

    Raises: CheckpointError: a UNet of another structure.
    """
    blocks = UnetBlocks(graph, layers)
    bias = _input(graph, BIAS, (GROUPS, TOKENS))
    weights: dict[int, ir.Value] = {}
    for name, query, output in image_attention(layers):
        level = blocks.level(name)
        if level not in weights:
            weights[level] = _input(graph, weights_name(level), weights_shape(level))
        shape = ImageLayer(name, query.outputs).shape
        key, value = (_input(graph, input_name(name, each), shape) for each in (KEY, VALUE))
        images = _Images(key, value, bias, weights[level])
        _add_attention(graph, name, blocks.node(query), blocks.node(output), query.heads, images)


def _input(graph: ir.Graph, name: str, shape: Sequence[int | str]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(_FLOAT), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value


def _add_attention(
    graph: ir.Graph, name: str, to_q: ir.Node, to_out: ir.Node, heads: int, images: _Images
) -> None:
    """Let the output layer of an attention read its sum with that to the images."""
    builder = NodeBuilder(f"ip_adapter.{name}", graph)
    hidden = to_out.inputs[0]
    assert hidden is not None  # for the type checker: a layer has an input
    size = _width(images.key) // heads
    query = _attended(
        builder, _with_bias(to_q.outputs[0]), weight_dtype(to_q.inputs[1]), heads, size
    )
    result = _attention(builder, query, heads, size, images)
    dtype = hidden.dtype or weight_dtype(to_out.inputs[1])
    if dtype != _FLOAT:
        result = builder.add("Cast", [result], to=int(dtype))
    uses = list(hidden.uses())
    total = builder.add("Add", [hidden, result])
    total.type = ir.TensorType(dtype)
    for user, place in uses:
        user.replace_input_with(place, total)
    producer = hidden.producer()
    assert producer is not None  # for the type checker: it is the output of the attention
    graph.insert_after(producer, builder.nodes)


def _width(key: ir.Value) -> int:
    assert key.shape is not None  # for the type checker: it is an input
    return int(key.shape[3])  # type: ignore[arg-type]


def _with_bias(product: ir.Value) -> ir.Value:
    """The output of a layer with its bias, which may be an addition of its own."""
    users = list(product.uses())
    if len(users) == 1 and users[0][0].op_type == "Add":
        user, place = users[0]
        other = user.inputs[1 - place]
        if other is not None and other.is_initializer():
            return user.outputs[0]
    return product


def _attended(
    builder: NodeBuilder, query: ir.Value, dtype: ir.DataType, heads: int, size: int
) -> ir.Value:
    """The queries, divided by the root of a head's size: (batch, 1, heads, positions, size)."""
    if dtype != _FLOAT:
        query = builder.add("Cast", [query], to=int(_FLOAT))
    split = builder.add("Reshape", [query, builder.vector(0, 0, heads, size)])
    by_head = builder.add("Transpose", [split], perm=[0, 2, 1, 3])
    scale = builder.constant(f"ip_adapter.scale.{size}", np.array(size**-0.5, np.float32))
    return builder.add("Unsqueeze", [builder.add("Mul", [by_head, scale]), builder.vector(1)])


def _attention(
    builder: NodeBuilder, query: ir.Value, heads: int, size: int, images: _Images
) -> ir.Value:
    """The weighted sum of all groups: (batch, positions, width)."""
    split = builder.vector(0, 0, 0, heads, size)
    key = builder.add("Reshape", [images.key, split])
    key = builder.add("Transpose", [key], perm=[0, 1, 3, 4, 2])
    value = builder.add("Reshape", [images.value, split])
    value = builder.add("Transpose", [value], perm=[0, 1, 3, 2, 4])
    bias = builder.add("Unsqueeze", [images.bias, builder.vector(1, 2)])
    scores = builder.add("Add", [builder.add("MatMul", [query, key]), bias])
    found = builder.add("MatMul", [builder.add("Softmax", [scores], axis=-1), value])
    weights = builder.add("Unsqueeze", [images.weights, builder.vector(1, 3)])
    weighted = builder.add("Mul", [found, weights])
    total = builder.add("ReduceSum", [weighted, builder.vector(1)], keepdims=0)
    by_position = builder.add("Transpose", [total], perm=[0, 2, 1, 3])
    return builder.add("Reshape", [by_position, builder.vector(0, 0, heads * size)])
