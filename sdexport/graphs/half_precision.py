"""Converting a float32 graph to float16 or bfloat16, with float32 where that is needed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype

from sdexport.runtime.models.families import full_precision_inputs

LARGEST = 65504.0

TIMESTEP = "float32: sines of the timestep, which is up to 1000; float16 has three digits"
SOFTMAX = "float32: softmax; sums of exponentials"
STATISTICS = "float32: normalisation; sums of thousands of squares would overflow"
UPCAST = "float32: attention scores; the checkpoint sets upcast_attention"
LARGE = "float32: weights beyond 65504, the largest float16"

_FLOAT = ir.DataType.FLOAT
_FLOAT32_OPERATORS = {
    "Softmax": SOFTMAX,
    "InstanceNormalization": STATISTICS,
    "ReduceMean": STATISTICS,
    "ReduceSumSquare": STATISTICS,
    "ReduceL2": STATISTICS,
    "Pow": STATISTICS,
    "Sqrt": STATISTICS,
    "Reciprocal": STATISTICS,
}
_FULL_PRECISION = {"timestep", *full_precision_inputs()}
_LEARNED = {"Gemm", "MatMul", "Conv"}
# Inputs that ONNX requires in float32, whatever the type of the data.
_FIXED_INPUTS = {"Resize": {1, 2}}


def lower(model: ir.Model, dtype: ir.DataType, *, upcast_attention: bool = False) -> dict[str, int]:
    """Convert a float32 graph to `dtype` in place; some nodes stay float32.

    LayerNormalization and GroupNormalization become nodes of `dtype`; their stash_type 1 makes them
    compute statistics in float32. So does Attention, without an attribute for its softmax:
    TensorRT's parser rejects softmax_precision, and its kernels use float32 anyway.

    Args:
      dtype: FLOAT16 or BFLOAT16.
      upcast_attention: keep attention scores in float32.
    Returns: the number of nodes with floating-point outputs that are `dtype`, under its name in
      lower case, and the number that stay float32 under each reason.
    """
    return _Pass(model.graph, dtype, upcast_attention).run()


class _Pass:
    def __init__(self, graph: ir.Graph, dtype: ir.DataType, upcast_attention: bool) -> None:
        self.graph, self.dtype, self.upcast_attention = graph, dtype, upcast_attention
        self.nodes: Counter[str] = Counter()
        self._times = {v for v in graph.inputs if v.name in _FULL_PRECISION}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> dict[str, int]:
        for node in list(self.graph):
            self._convert(node)
        for index, output in enumerate(self.graph.outputs):
            if output.dtype == self.dtype:
                self._single_output(index, output)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and value not in self.graph.outputs:
                del self.graph.initializers[name]
        return dict(self.nodes)

    def _convert(self, node: ir.Node) -> None:
        slots = [
            i
            for i, value in enumerate(node.inputs)
            if self._is_float(value) and i not in _FIXED_INPUTS.get(node.op_type, ())
        ]
        results = [value for value in node.outputs if self._is_float(value)]
        if not slots or not results:
            return  # its floats come from integers: they stay float32 and are cast where used
        reason = self._reason_for_float32(node, slots)
        wanted = _FLOAT if reason else self.dtype
        for i in slots:
            value = node.inputs[i]
            assert value is not None  # for the type checker: a slot holds a float
            node.replace_input_with(i, self._as(value, wanted))
        for value in results:
            value.dtype = wanted
        self.nodes[reason or self.dtype.name.lower()] += 1

    def _reason_for_float32(self, node: ir.Node, slots: list[int]) -> str | None:
        inputs = [node.inputs[i] for i in slots]
        if node.op_type not in _LEARNED and self._times.intersection(inputs):
            self._times.update(node.outputs)
            return TIMESTEP
        weights = [v.const_value for v in inputs if v is not None and v.const_value is not None]
        if self.upcast_attention and (
            node.op_type == "Attention" or (node.op_type == "MatMul" and not weights)
        ):
            return UPCAST
        if self.dtype == ir.DataType.FLOAT16 and any(
            np.abs(weight.numpy()).max(initial=0.0) > LARGEST for weight in weights
        ):
            return LARGE
        return _FLOAT32_OPERATORS.get(node.op_type)

    def _as(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """The value in that type: itself, a converted weight, or a cast that all users share."""
        if value.dtype == wanted:
            return value
        key = value, wanted
        if key not in self._casts:
            if value.const_value is not None and value.is_initializer():
                self._casts[key] = self._weight(value, wanted)
            else:
                self._casts[key] = self._cast(value, wanted)
        return self._casts[key]

    def _weight(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        single = value.const_value
        assert single is not None  # for the type checker: the caller looked

        # Called when the weight is written, so that only one is in memory twice.
        def convert() -> TorchTensor:
            array = single.numpy()
            tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
            return TorchTensor(tensor.to(to_torch_dtype(wanted)), name=name)  # faster than NumPy

        name = f"{value.name}.{wanted.name.lower()}"
        shape = ir.Shape(single.shape.numpy())
        tensor = ir.LazyTensor(convert, dtype=wanted, shape=shape, name=name)
        weight = ir.Value(name=name, type=ir.TensorType(wanted), shape=shape, const_value=tensor)
        self.graph.register_initializer(weight)
        return weight

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        node = _cast_node(value, wanted, f"{value.name}.{wanted.name.lower()}")
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return node.outputs[0]

    def _single_output(self, index: int, output: ir.Value) -> None:
        """Cast an output to float32, under its old name."""
        name = output.name
        output.name = f"{name}.{self.dtype.name.lower()}"
        node = _cast_node(output, _FLOAT, str(name))
        node.outputs[0].shape, output.shape = output.shape, None
        self.graph.append(node)
        self.graph.outputs[index] = node.outputs[0]

    def _is_float(self, value: ir.Value | None) -> bool:
        return value is not None and value.dtype in (_FLOAT, self.dtype)


def _cast_node(value: ir.Value, wanted: ir.DataType, name: str) -> ir.Node:
    result = ir.Value(name=name, type=ir.TensorType(wanted))
    attributes: list[Any] = [ir.AttrInt64("to", int(wanted))]
    return ir.Node("", "Cast", [value], attributes, outputs=[result], name=f"cast.{name}")
