"""An ONNX graph with the inputs and outputs of the demo model's UNet that computes little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

SHAPES = {
    "sample": ["batch", 4, "height", "width"],
    "timestep": [1],
    "encoder_hidden_states": ["batch", "sequence", 96],
}


def write_small_unet(path: Path, *, precision: str = "float32") -> Path:
    """out_sample = convolution(sample) * (1 + timestep / 1000) + mean(encoder_hidden_states w).

    Args:
      precision: of the weights and of everything between the edges.
    """
    rng = np.random.default_rng(5)
    dtype = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}.get(
        precision, TensorProto.BFLOAT16
    )
    weights = {
        "kernel": rng.standard_normal((4, 4, 3, 3)),
        "w": rng.standard_normal((96, 4)),
        "one": np.ones(1),
        "thousand": np.full(1, 1000),
    }
    casts = [helper.make_node("Cast", [name], [f"{name}.lower"], to=dtype) for name in SHAPES]
    nodes = [
        *casts,
        helper.make_node("Conv", ["sample.lower", "kernel"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Div", ["timestep.lower", "thousand"], ["t"]),
        helper.make_node("Add", ["t", "one"], ["scale"]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("MatMul", ["encoder_hidden_states.lower", "w"], ["c"]),
        helper.make_node("ReduceMean", ["c", "axis"], ["d"], keepdims=0),
        helper.make_node("Unsqueeze", ["d", "last"], ["e"]),
        helper.make_node("Add", ["b", "e"], ["f"]),
        helper.make_node("Cast", ["f"], ["out_sample"], to=TensorProto.FLOAT),
    ]
    initializers = [
        helper.make_tensor(name, dtype, value.shape, value.ravel().tolist())
        for name, value in weights.items()
    ]
    initializers += [
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array([2, 3], np.int64), "last"),
    ]
    edges = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {**SHAPES, "out_sample": SHAPES["sample"]}.items()
    ]
    graph = helper.make_graph(nodes, "unet", edges[:-1], edges[-1:], initializers)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    return path
