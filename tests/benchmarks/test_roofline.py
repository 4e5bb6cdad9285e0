"""FLOPs and bytes of a graph, compared with PyTorch's count and with counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.roofline import count, flops, roof, shares
from sdexport.bench.workload import feeds_for


@pytest.mark.parametrize("name", ["unet", "vae_decoder", "text_encoder"])
def test_count_agrees_with_pytorch(
    package: Path, modules: dict[str, Any], torch_sessions: dict[str, Any], name: str
) -> None:
    arrays = feeds_for(package, 64, 64)[name]
    shapes = {key: value.shape for key, value in arrays.items()}
    found = count(package / name / "model.onnx", shapes)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        torch_sessions[name].run(arrays)
    attention = found["flops_by_kind"]["ScaledDotProductAttention"]  # PyTorch counts none on a CPU
    assert attention > 0 and found["flops"] - attention == counter.get_total_flops()
    used = modules["vae"].decoder if name == "vae_decoder" else modules[name]
    weights = 4 * sum(p.numel() for p in used.parameters())
    assert 0.98 * weights <= found["weight_bytes"] <= 1.1 * weights


def test_flops_of_single_operations() -> None:
    assert flops("MatMul", [[2, 3, 5], [5, 7]], [2, 3, 7], {}) == 2 * 2 * 3 * 5 * 7
    assert flops("MatMul", [[5, 3], [5, 7]], [3, 7], {"transpose_a": True}) == 2 * 3 * 5 * 7
    convolution = [[1, 4, 8, 8], [6, 4, 3, 3]]
    assert flops("Convolution", convolution, [1, 6, 8, 8], {}) == 2 * 6 * 64 * 4 * 9
    grouped = [[1, 4, 8, 8], [2, 3, 2, 3, 3]]
    assert flops("GroupConvolution", grouped, [1, 6, 8, 8], {}) == 2 * 6 * 64 * 2 * 9
    attention = [[1, 2, 16, 8], [1, 2, 10, 8], [1, 2, 10, 4]]
    kind = "ScaledDotProductAttention"
    assert flops(kind, attention, [1, 2, 16, 4], {}) == 2 * 2 * 16 * 10 * (8 + 4)


def test_roof_is_the_slower_of_computing_and_moving_data() -> None:
    limit = {"fp32_flops": 100.0, "bf16_flops": 200.0, "copy_bytes": 10.0}
    work = {"flops": 400, "weight_bytes": 10, "product_bytes": 10}
    assert roof(work, limit, "fp32") == 4 and roof(work, limit, "bf16") == 2
    assert roof(work | {"weight_bytes": 90}, limit, "fp32") == 10
    latency = {"groups": [{"x": {"precision": "fp32", "cases": {"unet": {"median_s": 8.0}}}}]}
    found = shares({"components": {"unet": work}, "limits": limit}, latency)
    assert found == {"x": {"unet": {"roof_s": 4.0, "share": 0.5}}}
    assert np.isfinite(found["x"]["unet"]["share"])
