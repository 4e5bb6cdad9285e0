"""Adding ONNX operators to a graph, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sdexport.engines.errors import CheckpointError


class NodeBuilder:
    """Builds the nodes that replace one node of a graph.

    Args:
      prefix: start of the names of the nodes and their outputs.
      graph: gets the constants as initializers, each name once. The nodes themselves are only
        collected in `nodes`.
    """

    def __init__(self, prefix: str, graph: ir.Graph) -> None:
        self.nodes: list[ir.Node] = []
        self.graph = graph
        self._prefix = prefix

    def add(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Add a node with one output. Returns: that output."""
        name = f"{self._prefix}.{op_type}.{len(self.nodes)}"
        output = ir.Value(name=name)
        self.nodes.append(ir.node(op_type, inputs, attributes, outputs=[output], name=name))
        return output

    def constant(self, name: str, values: np.ndarray) -> ir.Value:
        """The initializer of that name, created from `values` if the graph has none."""
        if name not in self.graph.initializers:
            tensor = ir.Tensor(np.asarray(values, order="C"), name=name)
            self.graph.register_initializer(
                ir.Value(
                    name=name,
                    type=ir.TensorType(tensor.dtype),
                    shape=ir.Shape(tensor.shape),
                    const_value=tensor,
                )
            )
        return self.graph.initializers[name]

    def vector(self, *numbers: int) -> ir.Value:
        """A constant of shape (n,), int64."""
        return self.constant(f"vector{numbers}", np.array(numbers, np.int64))

    def scalar(self, number: int) -> ir.Value:
        """A constant of shape (), int64."""
        return self.constant(f"scalar({number})", np.array(number, np.int64))

    def replace(self, node: ir.Node, result: ir.Value) -> None:
        """Put the nodes in the place of `node`, whose only output becomes `result`."""
        self.nodes[-1].name = node.outputs[0].name
        ir.convenience.replace_nodes_and_values(
            self.graph, node, [node], self.nodes, [node.outputs[0]], [result]
        )


def weight_dtype(weight: ir.Value | None) -> ir.DataType:
    """The type that a layer computes in: that of its weight, or of the scale of int8 weights.

    Raises: CheckpointError: the weight is no constant.
    """
    producer = None if weight is None else weight.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return weight_dtype(producer.inputs[1])
    constant = None if weight is None else weight.const_value
    if constant is None:
        raise CheckpointError(f"{'' if weight is None else weight.name}: not a constant weight")
    return constant.dtype
