"""A package whose UNet computes for minutes, in many nodes or in a single one, or to be folded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.changed_package import accept_files

_TIMES = 100_000_000
_SIDE = 12_000
"""Of two square matrices, whose product is 3.5e12 operations."""


def slow_down(package: Path, how: str) -> None:
    """Add work to the package's UNet, whose output stays the sample.

    Args:
      how: "loop" runs a small node again and again, "node" is one product of matrices, "fold" the
        same of constants, which engines compute when they open the graph.
    """
    path = package / "unet" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    names = [value.name for value in model.graph.input]
    nodes, constants = {"loop": _loop, "node": _product, "fold": _folded}[how](names[0])
    nodes.append(helper.make_node("Add", [names[0], "work"], [model.graph.output[0].name]))
    graph = helper.make_graph(
        nodes, "slow", list(model.graph.input), list(model.graph.output), constants
    )
    opsets = [entry for entry in model.opset_import if not entry.domain]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version), path)
    (path.parent / "model.onnx_data").unlink(missing_ok=True)
    accept_files(package, "unet/model.onnx")


def _loop(sample: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Sin", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        helper.make_node("ReduceSum", [sample], ["sum"], keepdims=0),
        helper.make_node("Loop", ["times", "yes", "sum"], ["work"], body=body),
    ]
    return nodes, [
        numpy_helper.from_array(np.array(_TIMES, np.int64), "times"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]


def _product(sample: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    return [
        helper.make_node("ReduceSum", [sample], ["sum"], keepdims=0),
        *_multiply("sum"),
    ], _sizes()


def _folded(sample: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    one = numpy_helper.from_array(np.array(1, np.float32), "one")
    return _multiply("one"), [one, *_sizes()]


def _multiply(value: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Expand", [value, "square"], ["matrix"]),
        helper.make_node("MatMul", ["matrix", "matrix"], ["product"]),
        helper.make_node("ReduceMax", ["product"], ["work"], keepdims=0),
    ]


def _sizes() -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.array([_SIDE, _SIDE], np.int64), "square")]
