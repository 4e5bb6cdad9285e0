"""What is computed in half precision, what stays in single, and why.

The pass works on the traced graph, so every backend is given the same decision: TensorRT 11 and
TensorRT-RTX take types from the graph alone. Inputs and outputs stay float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir

PRECISIONS = ("fp32", "fp16")
LARGEST = 65504.0

TIMESTEP = "timestep embedding: sines of numbers up to 1000, of which half keeps three digits"
SOFTMAX = "softmax: sums of exponentials; where Attention is one node it has its own setting"
STATISTICS = "normalisation: a variance of thousands of numbers; squares overflow in half"
UPCAST = "attention scores: the checkpoint asks for it (upcast_attention); they overflow in half"
LARGE = "weights beyond 65504, the largest half"
XL_VAE = "SDXL's VAE: its activations overflow in half and the picture turns black"

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_ISLANDS = {
    "Softmax": SOFTMAX,
    "InstanceNormalization": STATISTICS,
    "ReduceMean": STATISTICS,
    "ReduceSumSquare": STATISTICS,
    "Pow": STATISTICS,
    "Sqrt": STATISTICS,
    "Reciprocal": STATISTICS,
}
_TIMES = {"timestep", "time_ids"}
_LEARNED = {"Gemm", "MatMul", "Conv"}
# Inputs that ONNX wants in float32 whatever the data is.
_FIXED = {"Resize": {1, 2}}


@dataclass
class Conversion:
    """How many nodes with floating-point results are half, and how many are not for each reason."""

    half: int = 0
    single: Counter[str] = field(default_factory=Counter)


def keeps_single(component: str, configs: Mapping[str, SimpleNamespace]) -> str | None:
    """The reason why a whole component stays in float32, or None."""
    return XL_VAE if component.startswith("vae") and "text_encoder_2" in configs else None


def to_half(model: ir.Model, *, upcast_attention: bool = False) -> Conversion:
    """Turn a float32 graph into float16 with float32 islands, in place.

    LayerNormalization and GroupNormalization stay nodes of half whose stash_type 1 has them compute
    their statistics in float32; Attention gets softmax_precision float32.
    """
    return _Pass(model.graph, upcast_attention).run()


class _Pass:
    def __init__(self, graph: ir.Graph, upcast_attention: bool) -> None:
        self.graph, self.upcast_attention = graph, upcast_attention
        self.done = Conversion()
        self._times = {v for v in graph.inputs if v.name in _TIMES}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> Conversion:
        for node in list(self.graph):
            self._convert(node)
        for index, output in enumerate(self.graph.outputs):
            if output.dtype == _HALF:
                self._single_output(index, output)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and value not in self.graph.outputs:
                del self.graph.initializers[name]
        return self.done

    def _convert(self, node: ir.Node) -> None:
        slots = [
            i
            for i, value in enumerate(node.inputs)
            if _is_float(value) and i not in _FIXED.get(node.op_type, ())
        ]
        results = [value for value in node.outputs if _is_float(value)]
        if not slots or not results:
            return  # what makes floats of integers stays float32 and is cast where it is used
        reason = self._island(node, slots)
        wanted = _FLOAT if reason else _HALF
        for i in slots:
            value = node.inputs[i]
            assert value is not None  # for the type checker: a slot holds a float
            node.replace_input_with(i, self._as(value, wanted))
        for value in results:
            value.dtype = wanted
        if reason:
            self.done.single[reason] += 1
        else:
            self.done.half += 1
            if node.op_type == "Attention":
                node.attributes["softmax_precision"] = ir.AttrInt64(
                    "softmax_precision", int(_FLOAT)
                )

    def _island(self, node: ir.Node, slots: list[int]) -> str | None:
        inputs = [node.inputs[i] for i in slots]
        if node.op_type not in _LEARNED and self._times.intersection(inputs):
            self._times.update(node.outputs)
            return TIMESTEP
        weights = [v.const_value for v in inputs if v is not None and v.const_value is not None]
        if self.upcast_attention and (
            node.op_type == "Attention" or (node.op_type == "MatMul" and not weights)
        ):
            return UPCAST
        if any(np.abs(weight.numpy()).max(initial=0.0) > LARGEST for weight in weights):
            return LARGE
        return _ISLANDS.get(node.op_type)

    def _as(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """The value in that type: itself, a converted weight, or behind one cast for all users."""
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

        def convert() -> ir.Tensor[
            Any
        ]:  # when it is written, so that one weight at a time is twice
            return ir.Tensor(single.numpy().astype(wanted.numpy()), name=name)

        name = f"{value.name}.half"
        shape = ir.Shape(single.numpy().shape)
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
        """A float32 output under its own name, behind what is computed in half."""
        name = output.name
        output.name = f"{name}.half"
        node = _cast_node(output, _FLOAT, str(name))
        node.outputs[0].shape, output.shape = output.shape, None
        self.graph.append(node)
        self.graph.outputs[index] = node.outputs[0]


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (_FLOAT, _HALF)


def _cast_node(value: ir.Value, wanted: ir.DataType, name: str) -> ir.Node:
    result = ir.Value(name=name, type=ir.TensorType(wanted))
    attributes: list[Any] = [ir.AttrInt64("to", int(wanted))]
    return ir.Node("", "Cast", [value], attributes, outputs=[result], name=f"cast.{name}")
