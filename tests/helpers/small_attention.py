"""An ONNX graph of one attention node, with the heads as an axis of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, save

NAMES = ("query", "key", "value")


def write_attention(
    path: Path, *, name: str = "attention", mask: str = "", **settings: Any
) -> Path:
    """y = attention(query, key, value), of opset 23.

    Args:
      name: of the node. mask: name of a fourth input; "" for none. settings: of the operator.
    """
    shape = ["batch", 2, "rows", 8]
    edges = [helper.make_tensor_value_info(each, TensorProto.FLOAT, shape) for each in NAMES]
    if mask:
        edges.append(helper.make_tensor_value_info(mask, TensorProto.FLOAT, ["rows", "rows"]))
    node = helper.make_node("Attention", [e.name for e in edges], ["y"], name=name, **settings)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "unet", edges, [output])
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), path)
    return path


def attention_feeds() -> dict[str, np.ndarray]:
    """Inputs without a mask."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((2, 2, 5, 8), np.float32) for name in NAMES}
