"""Operations found again in the operators that OpenVINO compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.operators import INPUTS, Product, _by_operator, _kind, compiled_models, profile
from benchmarks.operators_table import table
from sdexport import load_pipeline

GFLOPS = 1e12


def test_products_go_to_the_operator_that_they_were_fused_into() -> None:
    products = [Product(5, ("a", "bias", "gelu")), Product(7, ("b",)), Product(9, ("lost",))]
    operators = [("first", ["gelu", "bias"]), ("second", ["b"]), ("third", ["c"])]
    assert _by_operator(products, operators) == {"first": 5, "second": 7}


def test_subgraphs_are_named_after_what_they_compute() -> None:
    assert _kind("Subgraph", ["Softmax_1", "node_scaled_dot_product_attention"]) == "attention"
    assert _kind("Subgraph", ["Multiply_1", "node_group_norm_3"]) == "normalisation"
    assert _kind("Subgraph", ["node_add"]) == "elementwise"
    assert _kind("FullyConnected", ["norm"]) == "matrix products"
    assert _kind("SomethingNew", []) == "elementwise"


def test_every_operation_is_found_in_a_profile(package: Path) -> None:
    pytest.importorskip("openvino")
    with (
        compiled_models() as found,
        load_pipeline(package, backend="openvino", precision="f32") as pipe,
    ):
        pipe("a red circle", width=64, height=64, num_inference_steps=1, seed=0)
    parts = {}
    for name, wanted in INPUTS.items():
        for products, compiled in found:
            if wanted in {port.get_any_name() for port in compiled.inputs}:
                parts[name] = profile(compiled, products, GFLOPS)
    assert set(parts) == set(INPUTS)
    for part in parts.values():
        assert part["not_found_flops"] == 0 < part["flops"]
        kinds = part["kinds"]
        assert sum(kind["flops"] for kind in kinds.values()) == part["flops"]
        assert kinds["convolutions"]["flops"] > 0 and kinds["convolutions"]["of_limit"] > 0
    report = {"model": "toy", "size": [64, 64], "machine": {"cores": 2, "cpu_family": "26"}}
    text = table([report | {"limits": {"bf16_flops": GFLOPS}, "components": parts}])
    assert "| **unet** |" in text and "| convolutions |" in text
