"""Modules with mapped weights: nothing is copied, and outputs are those of float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdexport.checkpoints import modules
from sdexport.checkpoints.modules import empty, fill, free_weights, upcasts
from sdexport.graphs.trace import trace
from tests.helpers.torch_components import part_named


@pytest.fixture
def unet(checkpoint: Path) -> Any:
    from sdexport.checkpoints.diffusers_folder import Checkpoint

    return Checkpoint.open(checkpoint).load("unet")


def again(unet: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, torch.Tensor]]:
    tensors = {name: value.to(dtype) for name, value in unet.state_dict().items()}
    return fill(empty(type(unet).__name__, unet.config), tensors), tensors


def test_float32_weights_are_shared(unet: Any) -> None:
    filled, tensors = again(unet)
    for name, value in filled.state_dict().items():
        assert value.data_ptr() == tensors[name].data_ptr(), name
    assert not filled.training and not any(p.requires_grad for p in filled.parameters())


def test_half_layers_stay_half_and_compute_as_float32(
    unet: Any, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and so is the graph."""
    part = part_named("unet", checkpoint)
    feeds = part.example({"batch": 2, "sequence": 7, "height": 8, "width": 8}, seed=1)
    single, _ = again(unet, torch.float16)
    monkeypatch.setattr(modules, "LARGE", 1000)
    half, tensors = again(unet, torch.float16)
    kept = {name for name, layer in half.named_modules() if upcasts(layer)}
    assert len(kept) > 50 and not any(map(upcasts, single.modules()))
    assert {half.get_submodule(name).weight.data_ptr() for name in kept} == {
        tensors[f"{name}.weight"].data_ptr() for name in kept
    }
    with torch.inference_mode():
        assert torch.equal(part.wrap(half)(**feeds), part.wrap(single)(**feeds))
    paths = [tmp_path / name / "model.onnx" for name in ("half", "single")]
    for path, module in zip(paths, (half, single), strict=True):
        trace(part, module, path, opset=23)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert all(upcasts(half.get_submodule(name)) for name in kept)  # tracing put them back


def test_freed_weights_are_gone(unet: Any) -> None:
    free_weights(unet)
    assert not any(weight.numel() for weight in (*unet.parameters(), *unet.buffers()))
    free_weights(None)
