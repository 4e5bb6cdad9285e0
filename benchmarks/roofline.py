"""How close each backend comes to the machine's limits.

    python -m benchmarks.roofline --work DIR [--model sd15] [--size 512]

The operations are counted from the graph with its real shapes (OpenVINO infers them): FLOPs of
convolutions, matrix products and attention, two for a multiply-add; bytes of weights, and of what
those operators read and write, in float32. The limits are the fastest matrix product and copy
measured here. They give the least possible time (the roofline); a backend's share is that time over
its median in the latency report of the same model and size.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import arguments
from sdexport.bench.measure import machine
from sdexport.bench.workload import feeds_for

PRODUCTS = ("Convolution", "GroupConvolution", "MatMul", "ScaledDotProductAttention")
SIDE = 3072
"""Size of the square matrices that are multiplied; together 113 MB, larger than every cache."""


def count(model: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """FLOPs and bytes of a graph.

    Args:
      model: the .onnx file.
      shapes: of each input.
    Returns: flops, the total, and flops_by_kind; weight_bytes; product_bytes, the activations that
      those operators read and write.
    """
    import openvino as ov

    graph = ov.Core().read_model(str(model))
    graph.reshape({name: ov.PartialShape(list(shape)) for name, shape in shapes.items()})
    kinds = dict.fromkeys(PRODUCTS, 0)
    weights = activations = 0
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Constant":
            weights += 4 * math.prod(node.get_output_shape(0))
        if kind not in kinds:
            continue
        sizes = [list(port.get_shape()) for port in node.inputs()]
        kinds[kind] += flops(kind, sizes, list(node.get_output_shape(0)), node.get_attributes())
        inner = [s for s, port in zip(sizes, node.inputs(), strict=True) if not _constant(port)]
        activations += 4 * sum(map(math.prod, [*inner, node.get_output_shape(0)]))
    return {
        "flops": sum(kinds.values()),
        "flops_by_kind": {kind: value for kind, value in kinds.items() if value},
        "weight_bytes": weights,
        "product_bytes": activations,
    }


def flops(
    kind: str, inputs: list[list[int]], output: list[int], attributes: Mapping[str, Any]
) -> int:
    """Operations of one operator, two for a multiply-add.

    Args:
      inputs, output: shapes; convolution weights are (out, in, h, w), or (groups, out, in, h, w).
    """
    if kind == "MatMul":
        depth = inputs[0][-2 if attributes.get("transpose_a") else -1]
        return 2 * math.prod(output) * depth
    if kind == "Convolution":
        return 2 * math.prod(output) * math.prod(inputs[1][1:])
    if kind == "GroupConvolution":
        return 2 * math.prod(output) * math.prod(inputs[1][2:])
    query, key, value = inputs[:3]
    products = math.prod(query[:-1]) * key[-2]
    return 2 * products * (query[-1] + value[-1])


def _constant(port: Any) -> bool:
    """Whether an input is a weight, possibly converted or reshaped."""
    node = port.get_source_output().get_node()
    if node.get_type_name() in ("Convert", "Reshape", "Transpose") and node.inputs():
        return _constant(node.inputs()[0])
    return bool(node.get_type_name() == "Constant")


def limits(repeats: int = 5) -> dict[str, Any]:
    """Limits of this machine: FLOP/s of a matrix product, bytes/s of a copy."""
    return {
        "fp32_flops": max(_numpy_product(repeats), _openvino_product("f32", repeats)),
        "bf16_flops": _openvino_product("bf16", repeats),
        "copy_bytes": _copy(repeats),
    }


def _best(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _numpy_product(repeats: int) -> float:
    a, b = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), np.float32)
    return 2 * SIDE**3 / _best(lambda: a @ b, repeats)


def _openvino_product(precision: str, repeats: int) -> float:
    import openvino as ov
    from openvino import opset13 as ops

    a, b = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), np.float32)
    parameter = ops.parameter([SIDE, SIDE], np.float32)
    graph = ov.Model([ops.matmul(parameter, ops.constant(b), False, True)], [parameter])
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    request = compiled.create_infer_request()
    return 2 * SIDE**3 / _best(lambda: request.infer([a], share_inputs=True), repeats)


def _copy(repeats: int) -> float:
    """Bytes per second, read and written, of a copy of 256 MB by one core."""
    source = np.ones(1 << 26, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / _best(lambda: np.copyto(target, source), repeats)


def roof(work: Mapping[str, Any], limit: Mapping[str, float], precision: str) -> float:
    """Least possible seconds: the larger of computing and moving data.

    Precisions below fp32 are compared with the limit of bf16.
    """
    name, width = ("fp32", 1.0) if precision == "fp32" else ("bf16", 0.5)
    computing = work["flops"] / limit[f"{name}_flops"]
    moving = width * (work["weight_bytes"] + work["product_bytes"]) / limit["copy_bytes"]
    return max(computing, moving)


def shares(
    report: Mapping[str, Any], latency: Mapping[str, Any]
) -> dict[str, dict[str, dict[str, float]]]:
    """Contender -> component -> least possible seconds, and the share that was reached."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for group in latency["groups"]:
        for name, row in group.items():
            for case, figures in row["cases"].items():
                if case in report["components"] and "median_s" in figures:
                    seconds = roof(report["components"][case], report["limits"], row["precision"])
                    share = seconds / figures["median_s"]
                    found.setdefault(name, {})[case] = {"roof_s": seconds, "share": share}
    return found


def main() -> None:
    args = arguments.parser("roofline", __doc__).parse_args()
    for model, size, _ in arguments.selected(args):
        inputs = feeds_for(model.package, size, size)
        report: dict[str, Any] = {
            "model": model.name,
            "size": [size, size],
            "machine": machine(),
            "limits": limits(),
            "components": {
                name: count(
                    model.package / name / "model.onnx", {k: v.shape for k, v in arrays.items()}
                )
                for name, arrays in inputs.items()
            },
        }
        latency = args.results / f"latency-{model.name}-{size}.json"
        if latency.is_file():
            report["shares"] = shares(report, json.loads(latency.read_text(encoding="utf-8")))
        arguments.save(report, f"roofline-{model.name}-{size}", args)


if __name__ == "__main__":
    main()
