"""The factors of a LoRA's layers multiply to the change that an export merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdexport.checkpoints.lora_methods import new_weight
from sdexport.runtime.adapters.lora_factors import NotLowRankError, factors_of
from sdexport.runtime.adapters.lora_inputs import LayerShape
from sdexport.runtime.adapters.lora_kinds import kind_of
from sdexport.runtime.adapters.safetensors_file import SafetensorsFile
from tests.tolerances import LORA_FACTORS_ABS

LINEAR, WIDE = LayerShape("a", 24, 40), LayerShape("a", 40, 24)
POINT, CONV = LayerShape("a", 24, 40, (1, 1)), LayerShape("a", 24, 40, (3, 3))
SHAPES = {
    "lora": (LINEAR, {"down": (3, 24), "up": (40, 3), "alpha": ()}),
    "lora, wide": (WIDE, {"down": (3, 40), "up": (24, 3), "scale": ()}),
    "lora of a linear layer that was a convolution": (
        LINEAR,
        {"down": (3, 24, 1, 1), "up": (40, 3, 1, 1)},
    ),
    "lora of a 1x1 convolution without its kernel": (POINT, {"down": (3, 24), "up": (40, 3)}),
    "locon": (CONV, {"down": (3, 24, 3, 3), "up": (40, 3, 1, 1), "alpha": ()}),
    "tucker": (
        CONV,
        {"down": (4, 24, 1, 1), "up": (40, 4, 1, 1), "mid": (4, 4, 3, 3), "alpha": ()},
    ),
    "loha": (
        LINEAR,
        {"w1_a": (40, 2), "w1_b": (2, 24), "w2_a": (40, 3), "w2_b": (3, 24), "alpha": ()},
    ),
    "loha of a convolution": (
        CONV,
        {"w1_a": (40, 2), "w1_b": (2, 216), "w2_a": (40, 3), "w2_b": (3, 216)},
    ),
    "loha with middle tensors": (
        CONV,
        {
            **{"w1_a": (2, 40), "w1_b": (3, 24), "t1": (2, 3, 3, 3)},
            **{"w2_a": (2, 40), "w2_b": (2, 24), "t2": (2, 2, 3, 3)},
        },
    ),
    "lokr": (LINEAR, {"k_w1": (4, 3), "k_w2_a": (10, 2), "k_w2_b": (2, 8), "alpha": ()}),
    "lokr, wide": (WIDE, {"k_w1": (3, 4), "k_w2_a": (8, 2), "k_w2_b": (2, 10), "alpha": ()}),
    "lokr, both decomposed": (
        LINEAR,
        {"k_w1_a": (4, 1), "k_w1_b": (1, 3), "k_w2_a": (10, 2), "k_w2_b": (2, 8), "alpha": ()},
    ),
    "lokr, both whole": (LINEAR, {"k_w1": (4, 3), "k_w2": (10, 8)}),
    "lokr of a convolution": (CONV, {"k_w1": (4, 3), "k_w2": (10, 8, 3, 3)}),
    "lokr of a convolution, decomposed": (
        CONV,
        {"k_w1": (4, 3), "k_w2_a": (10, 2), "k_w2_b": (2, 72), "alpha": ()},
    ),
    "lokr with a middle tensor": (
        CONV,
        {"k_w1": (4, 3), "k_w2_a": (2, 10), "k_w2_b": (2, 8), "k_t2": (2, 2, 3, 3)},
    ),
}


def stored(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, Any]:
    save_file(tensors, folder / "a.safetensors")
    return dict(SafetensorsFile.read(folder / "a.safetensors").tensors)


def random(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {role: torch.randn(shape, generator=generator) for role, shape in shapes.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_factors_multiply_to_the_merged_change(name: str, tmp_path: Path) -> None:
    shape, shapes = SHAPES[name]
    tensors = random(shapes)
    kind = kind_of(tensors)
    rank = kind.rank(tensors)
    ratio = float(tensors["alpha"]) / rank if "alpha" in tensors and rank else 1.0
    ratio = float(tensors["scale"]) if "scale" in tensors else ratio
    zeros = torch.zeros(shape.outputs, shape.inputs, *shape.kernel)
    expected = new_weight(kind, zeros, tensors, ratio, 1.0).numpy()
    pair = factors_of(stored(tensors, tmp_path), shape, lambda rank: None)
    assert pair.down.shape[1:] == (shape.inputs, *shape.kernel)
    found = np.tensordot(pair.up, pair.down, 1)
    scale = float(np.abs(expected).max())
    assert np.abs(found - expected).max() <= LORA_FACTORS_ABS * scale


REJECTED = {
    "DoRA": {"down": (3, 24), "up": (40, 3), "dora_scale": (40, 1)},
    "a change of the bias": {"down": (3, 24), "up": (40, 3), "up_bias": (40,)},
    "full difference": {"diff": (40, 24)},
    "GLoRA": {"a1": (24, 2), "a2": (2, 24), "b1": (40, 2), "b2": (2, 24)},
    "OFT": {"oft_blocks": (4, 10, 10)},
    "IA3": {"factor": (40,), "on_input": ()},
    "LoHa of rank 64": {"w1_a": (40, 8), "w1_b": (8, 24), "w2_a": (40, 8), "w2_b": (8, 24)},
}


@pytest.mark.parametrize("what", REJECTED)
def test_what_is_not_of_low_rank_is_named(what: str, tmp_path: Path) -> None:
    with pytest.raises(NotLowRankError, match=what):
        factors_of(stored(random(REJECTED[what]), tmp_path), LINEAR, lambda rank: None)


WRONG = {
    "expected factors of 24 inputs": {"down": (3, 25), "up": (40, 3)},
    "expected factors of 40 outputs": {"down": (3, 24), "up": (41, 3)},
    "do not multiply": {"down": (3, 24), "up": (40, 4)},
    "a part of its LoRA is missing": {"down": (3, 24)},
    "kernel": {"down": (3, 24, 3, 3), "up": (40, 3, 1, 1)},
}


@pytest.mark.parametrize("what", WRONG)
def test_shapes_that_do_not_fit(what: str, tmp_path: Path) -> None:
    shape = CONV if what == "kernel" else LINEAR
    tensors = random(WRONG[what])
    if what == "kernel":
        tensors["down"] = tensors["down"].reshape(3, 24, 1, 9)
    with pytest.raises(ValueError, match=what):
        factors_of(stored(tensors, tmp_path), shape, lambda rank: None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_values_beyond_float32(value: float, tmp_path: Path) -> None:
    tensors = random({"down": (3, 24), "up": (40, 3), "alpha": ()})
    tensors["alpha"] = torch.tensor(value)
    tensors["up"] *= 1e30
    with pytest.raises(ValueError, match=r"NaN or infinity|too large"):
        factors_of(stored(tensors, tmp_path), LINEAR, lambda rank: None)


def test_quantised_factors(tmp_path: Path) -> None:
    tensors = {"down": torch.ones(3, 24, dtype=torch.int8), "up": torch.ones(40, 3)}
    with pytest.raises(ValueError, match="I8, so the file is quantised"):
        factors_of(stored(tensors, tmp_path), LINEAR, lambda rank: None)
