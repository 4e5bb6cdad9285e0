"""int8 weights, with a float32 scale for each output channel.

This is plain ONNX (DequantizeLinear), which every backend reads; arithmetic stays float32.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir

WEIGHTS = "int8 weights"
TABLE = "float16 weights: embeddings; every lookup would convert the whole int8 table"
EDGE = "float32: first and last convolution; few weights, and every pixel depends on them"
TIMESTEP = "float32: timestep embedding; few weights, and every block depends on them"
SMALL = "float32: weights too small to save anything"

_WEIGHT_OF = {"Conv": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
_CONDITIONING = ("time_embedding.", "add_embedding.")
_MAX_IMAGE_CHANNELS = 9
"""The most channels of images, latents and their parameters, and inpainting inputs."""
_MIN_ELEMENTS = 256


def quantize(model: ir.Model) -> dict[str, int]:
    """Store the weights of convolutions and matrix products as int8, and embeddings as float16.

    The graph is changed in place. Quantisation is symmetric and rounds to nearest: the largest
    absolute value of a channel becomes 127.

    Returns: the number of nodes with int8 weights, and of those without under each reason.
    """
    graph = model.graph
    nodes: Counter[str] = Counter()
    stored: dict[tuple[ir.Value, int], tuple[ir.Value, ...]] = {}
    for node in list(graph):
        slot = _WEIGHT_OF.get(node.op_type, 0)
        weight = node.inputs[slot] if node.op_type in _WEIGHT_OF else None
        if weight is None or not _is_matrix(weight):
            continue
        kind = _kind(node, weight)
        nodes[kind] += 1
        if kind not in (WEIGHTS, TABLE):
            continue
        key = weight, _channel_axis(node)
        if key not in stored:
            stored[key] = _halved(graph, weight) if kind == TABLE else _quantized(graph, *key)
        if kind == TABLE:
            _look_up(graph, node, *stored[key])
        else:
            dequantized = _node(
                "DequantizeLinear", [*stored[key]], f"{node.name}.weight", axis=key[1]
            )
            graph.insert_before(node, dequantized)
            node.replace_input_with(slot, dequantized.outputs[0])
    for weight in {weight for weight, _ in stored}:
        if not weight.uses():
            del graph.initializers[str(weight.name)]
    return dict(nodes)


def _is_matrix(value: ir.Value) -> bool:
    constant = value.const_value if value.is_initializer() else None
    return constant is not None and constant.dtype == ir.DataType.FLOAT and len(constant.shape) > 1


def _kind(node: ir.Node, weight: ir.Value) -> str:
    """WEIGHTS, TABLE, or the reason why the weight stays float32."""
    shape = _array_shape(weight)
    if np.prod(shape) < _MIN_ELEMENTS:
        return SMALL
    if node.op_type == "Gather":
        return TABLE
    if any(part in str(weight.name) for part in _CONDITIONING):
        return TIMESTEP
    edge = node.op_type == "Conv" and min(shape[:2]) <= _MAX_IMAGE_CHANNELS
    return EDGE if edge else WEIGHTS


def _array_shape(weight: ir.Value) -> tuple[int, ...]:
    constant = weight.const_value
    assert constant is not None  # for the type checker: _is_matrix looked
    return tuple(constant.shape.numpy())


def _channel_axis(node: ir.Node) -> int:
    """The axis of a weight that belongs to the output channels."""
    if node.op_type in ("Conv", "Gather"):
        return 0
    transposed = node.attributes.get("transB")
    return 0 if transposed is not None and transposed.as_int() else 1


def _quantized(graph: ir.Graph, weight: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
    """The int8 weight and the scales of its channels, as initializers."""
    constant = weight.const_value
    assert constant is not None  # for the type checker: _is_matrix looked

    # Called when the weight is written, so that only one is in memory twice.
    def codes() -> ir.Tensor[Any]:
        array = constant.numpy()
        shape = [1] * array.ndim
        shape[axis] = -1
        rounded = np.rint(array / _scales(array, axis).reshape(shape))
        return ir.Tensor(rounded.astype(np.int8), name=f"{weight.name}.int8")

    shape = ir.Shape(_array_shape(weight))
    name = f"{weight.name}.int8"
    tensor = ir.LazyTensor(codes, dtype=ir.DataType.INT8, shape=shape, name=name)
    scales = ir.Tensor(_scales(constant.numpy(), axis), name=f"{weight.name}.scale")
    return _initializer(graph, tensor), _initializer(graph, scales)


def _scales(array: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(i for i in range(array.ndim) if i != axis)
    largest = np.abs(array).max(axis=others)
    return np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)


def _initializer(graph: ir.Graph, tensor: Any) -> ir.Value:
    value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _halved(graph: ir.Graph, weight: ir.Value) -> tuple[ir.Value]:
    constant = weight.const_value
    assert constant is not None  # for the type checker: _is_matrix looked

    def halves() -> ir.Tensor[Any]:
        return ir.Tensor(constant.numpy().astype(np.float16), name=name)

    name, shape = f"{weight.name}.float16", ir.Shape(_array_shape(weight))
    tensor = ir.LazyTensor(halves, dtype=ir.DataType.FLOAT16, shape=shape, name=name)
    return (_initializer(graph, tensor),)


def _look_up(graph: ir.Graph, node: ir.Node, table: ir.Value) -> None:
    """Let a Gather read the float16 table, and cast the rows to float32."""
    result = node.outputs[0]
    rows = _node("Gather", [table, node.inputs[1]], f"{node.name}.rows", axis=0)
    rows.outputs[0].dtype = ir.DataType.FLOAT16
    floats = _node("Cast", [rows.outputs[0]], f"{node.name}.floats", to=int(ir.DataType.FLOAT))
    for new in (rows, floats):
        graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(result, floats.outputs[0])
    graph.remove(node, safe=True)


def _node(kind: str, inputs: list[ir.Value | None], name: str, **attributes: int) -> ir.Node:
    result = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    attrs: list[Any] = [ir.AttrInt64(key, value) for key, value in attributes.items()]
    return ir.Node("", kind, inputs, attrs, outputs=[result], name=name)
