"""A 3x3 convolution as ONNX Runtime computes it, and as prepared graphs do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CHANNELS = 256


def write(folder: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """Write both graphs; returns the direct one, the one by Winograd's tiles, and inputs."""
    import onnx
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    from sdexport.graphs.cpu.cpu_rewrites import CpuGraph

    rng = np.random.default_rng(0)
    weights = rng.standard_normal((CHANNELS, CHANNELS, 3, 3), np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", CHANNELS, "h", "w"])
        for name in ("image", "result")
    ]
    node = helper.make_node("Conv", ["image", "weight"], ["result"], pads=[1, 1, 1, 1])
    tensors = [numpy_helper.from_array(weights, "weight")]
    graph = helper.make_graph([node], "convolution", ends[:1], ends[1:], tensors)
    direct, winograd = folder / "direct.onnx", folder / "winograd.onnx"
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), direct)
    rewritten = CpuGraph(direct)
    rewritten.rewrite()
    ir.save(rewritten.model, winograd)
    return direct, winograd, {"image": rng.standard_normal((1, CHANNELS, 64, 64), np.float32)}
