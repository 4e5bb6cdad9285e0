"""Where the time of the UNet and the decoder goes in OpenVINO, against this machine's limits.

    python -m benchmarks.operators --work DIR [--model sd15] [--size 256]

A pipeline in bf16 compiles both, as for an image. Each is then run with OpenVINO's own timer for
each operator. The operations of convolutions, products and attention are counted in the graph that
was compiled, so every operator has its rate; the limit is the fastest matrix product in bf16 here.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import arguments
from benchmarks.roofline import PRODUCTS, flops, limits
from sdexport import load_pipeline
from sdexport.bench.measure import machine
from sdexport.bench.workload import PROMPT
from sdexport.engines.cache.user_cache import VARIABLE

PRECISION = "bf16"
REPEATS = 7
NEAR = 0.9
"""Products above this share of the limit are counted as at the limit."""
INPUTS = {"unet": "sample", "vae_decoder": "latent_sample"}
KINDS = {
    "Convolution": "convolutions",
    "GroupConvolution": "convolutions",
    "FullyConnected": "matrix products",
    "MatMul": "matrix products",
    "ScaledDotProductAttention": "attention",
    "MVN": "normalisation",
    "GroupNormalization": "normalisation",
    "RMS": "normalisation",
    "Reorder": "layout changes",
    "Transpose": "layout changes",
    "Convert": "layout changes",
    "Concatenation": "copies",
    "Split": "copies",
    "StridedSlice": "copies",
    "Interpolate": "copies",
    "Pad": "copies",
}
"""OpenVINO's type of an operator -> the line of the table; see `_kind` for the rest."""
CHAIN = 5
"""Nodes that a product may be fused with: bias, scale, activation."""
BIASED = "/WithoutBiases"
"""Ends the name of a product whose bias OpenVINO's reader made an operator of its own."""


@contextlib.contextmanager
def compiled_models() -> Iterator[list[tuple[Any, Any]]]:
    """Collects products and compiled model of each compilation, with the timer turned on.

    The cache of compiled graphs is off meanwhile, or nothing might be compiled.
    """
    import openvino as ov

    found: list[tuple[Any, Any]] = []
    usual = ov.Core.compile_model

    def compile_model(core: Any, model: Any, *args: Any, **options: Any) -> Any:
        device, config, *_ = *args, *(None, None)[len(args) :]
        config = {**(config or options.pop("config", None) or {}), "PERF_COUNT": True}
        config.pop("CACHE_DIR", None)
        counted = operations(model) if isinstance(model, ov.Model) else []
        compiled = usual(core, model, device or options.pop("device_name", "CPU"), config)
        found.append((counted, compiled))
        return compiled

    with (
        mock.patch.object(ov.Core, "compile_model", compile_model),
        mock.patch.dict(os.environ, {VARIABLE: "off"}),
    ):
        yield found


@dataclass(frozen=True)
class Product:
    """Operations of a product, and its name with those of the nodes that it may be fused into."""

    flops: int
    names: tuple[str, ...]


def operations(model: Any) -> list[Product]:
    """The products of a model with static shapes."""
    found = []
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in PRODUCTS or not node.output(0).get_partial_shape().is_static:
            continue
        sizes = [list(port.get_shape()) for port in node.inputs()]
        output = list(node.get_output_shape(0))
        work = flops(kind, sizes, output, node.get_attributes())
        found.append(Product(work, tuple(_names(node))))
    return found


def _names(node: Any) -> Iterator[str]:
    """The node and those after it, as long as each is the only one to read its output."""
    for _ in range(CHAIN):
        yield node.get_friendly_name().removesuffix(BIASED)
        readers = node.output(0).get_target_inputs()
        if len(readers) != 1:
            return
        node = next(iter(readers)).get_node()


def profile(compiled: Any, products: Sequence[Product], limit: float) -> dict[str, Any]:
    """Seconds, operations and rate of each kind of operator, in the fastest of several calls.

    Args:
      products: of the model that was compiled. limit: FLOP/s.
    """
    request, rng = compiled.create_infer_request(), np.random.default_rng(0)
    feeds = {
        port.get_any_name(): rng.standard_normal(list(port.get_shape()), np.float32)
        for port in compiled.inputs
    }
    best: list[Any] = []
    call = math.inf
    for _ in range(REPEATS):
        started = time.perf_counter()
        request.infer(feeds, share_inputs=True)
        seconds = time.perf_counter() - started
        if seconds < call:
            call, best = seconds, list(request.profiling_info)
    origins = {
        node.get_friendly_name(): _origins(node)
        for node in compiled.get_runtime_model().get_ordered_ops()
    }
    rows: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_COLUMNS, 0.0))
    work = _by_operator(products, [(i.node_name, origins.get(i.node_name, ())) for i in best])
    near = 0.0
    for info in best:
        seconds, done = info.real_time.total_seconds(), work.get(info.node_name, 0)
        row = rows[_kind(info.node_type, origins.get(info.node_name, ()))]
        row["seconds"] += seconds
        row["flops"] += done
        row["operators"] += seconds > 0
        if seconds and done / seconds >= NEAR * limit:
            near += seconds
    timed = sum(row["seconds"] for row in rows.values())
    return {
        "call_s": round(call, 4),
        "operators_s": round(timed, 4),
        "limit_s": round(sum(product.flops for product in products) / limit, 4),
        "flops": sum(product.flops for product in products),
        "not_found_flops": sum(product.flops for product in products) - sum(work.values()),
        "near_limit_share": round(near / timed, 3),
        "kinds": {
            name: _rounded(row, timed, limit)
            for name, row in sorted(rows.items(), key=lambda each: -each[1]["seconds"])
            if row["seconds"]
        },
    }


def _by_operator(
    products: Sequence[Product], operators: Sequence[tuple[str, Sequence[str]]]
) -> dict[str, int]:
    """Operations of each operator of the compiled model: of the products that it computes."""
    owner = {origin: name for name, origins in reversed(operators) for origin in origins}
    found: dict[str, int] = defaultdict(int)
    for product in products:
        name = next((owner[name] for name in product.names if name in owner), None)
        if name is not None:
            found[name] += product.flops
    return dict(found)


def _kind(operator: str, names: Sequence[str]) -> str:
    """The line of an operator; a subgraph is several that OpenVINO generates code for together."""
    if operator != "Subgraph":
        return KINDS.get(operator, "elementwise")
    said = " ".join(names).lower()
    if "softmax" in said or "attention" in said:
        return "attention"
    return "normalisation" if "norm" in said or "mvn" in said else "elementwise"


def _rounded(row: Mapping[str, float], timed: float, limit: float) -> dict[str, float]:
    found = {"seconds": round(row["seconds"], 5), "share": round(row["seconds"] / timed, 3)}
    found |= {"operators": row["operators"], "flops": row["flops"]}
    if row["flops"]:
        found["of_limit"] = round(row["flops"] / row["seconds"] / limit, 3)
    return found


_COLUMNS = ("seconds", "flops", "operators")


def _origins(node: Any) -> list[str]:
    """Names of the model's nodes that an operator of the compiled model computes."""
    info, key = node.get_rt_info(), "originalLayersNames"
    names = str(info[key].astype(str)).split(",") if key in info else []
    return list(dict.fromkeys(name.strip().removesuffix(BIASED) for name in names))


def run(package: Path, size: int) -> dict[str, Any]:
    """The report of a package; an image of two steps compiles the models."""
    limit = limits()
    with (
        compiled_models() as found,
        load_pipeline(package, backend="openvino", precision=PRECISION) as pipe,
    ):
        pipe(PROMPT, width=size, height=size, num_inference_steps=2, seed=0)
        parts = {}
        for name, wanted in INPUTS.items():
            for counted, compiled in found:
                if wanted in {port.get_any_name() for port in compiled.inputs}:
                    parts[name] = profile(compiled, counted, limit["bf16_flops"])
    return {
        "size": [size, size],
        "precision": PRECISION,
        "machine": machine(),
        "limits": limit,
        "components": parts,
    }


def main() -> None:
    args = arguments.parser("operators", __doc__).parse_args()
    for model, size, _ in arguments.selected(args):
        report = {"model": model.name, **run(model.package, size)}
        arguments.save(report, f"operators-{model.name}-{size}", args)


if __name__ == "__main__":
    main()
