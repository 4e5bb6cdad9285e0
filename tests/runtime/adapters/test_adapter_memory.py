"""What adapters add to the estimate of memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sdexport import Package, load_pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.demo_model import PACKAGE_DIR
from sdexport.runtime.adapters.adapter_memory import lora_need, merged_weights
from sdexport.runtime.component_backends import parse_backends
from sdexport.runtime.memory_need import image_calls, memory_need
from sdexport.runtime.models.components import AdapterKind
from tests.helpers.lora_files import ATTENTION, random_lora, save_peft

PLAIN, LORA = frozenset[AdapterKind](), frozenset({AdapterKind.LORA})
BOTH = LORA | {AdapterKind.CONTROLNET}
SIZE: dict[str, Any] = {"width": 64, "height": 64}


def test_each_combination_of_kinds_has_its_graphs() -> None:
    package = Package.load(PACKAGE_DIR, verify=False)

    def graphs(*kinds: frozenset[AdapterKind]) -> list[str]:
        return [call.component for call in image_calls(package, **SIZE, kinds=kinds)]

    assert graphs(PLAIN, PLAIN) == ["text_encoder", "unet", "vae_decoder"]
    assert graphs(LORA) == ["text_encoder.lora", "unet.lora", "vae_decoder"]
    texts = ["text_encoder", "text_encoder.lora"]
    assert graphs(PLAIN, BOTH) == [*texts, "unet", "unet.adapters", "vae_decoder"]


def test_a_folder_counts_for_the_files_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    for name in ("pytorch_lora_weights.safetensors", "checkpoint-500/model.safetensors"):
        (tmp_path / name).write_bytes(bytes(1000))
    assert lora_need([[tmp_path]]) == lora_need([[tmp_path / "pytorch_lora_weights.safetensors"]])
    assert lora_need([[tmp_path]]) == 4000
    assert lora_need([[tmp_path / "none"], [tmp_path / "checkpoint-500"]]) == 4000
    (tmp_path / "checkpoint-500" / "other.safetensors").touch()
    assert lora_need([[tmp_path / "checkpoint-500"]]) == 0  # several, which reading rejects


@pytest.mark.parametrize("side", [128, 192])
def test_merged_weights_are_those_that_openvino_merges(
    side: int, lora_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without guidance, with which OpenVINO has half of the rows before the prompt enters."""
    pytest.importorskip("openvino", exc_type=ImportError)
    from sdexport.engines.ov.rewrites import low_rank_products

    merged: list[int] = []
    for name in ("_merge_product", "_merge_convolution"):
        original = getattr(low_rank_products, name)

        def note(branch: Any, layer: Any, original: Any = original) -> None:
            merged.append(math.prod(list(layer.get_input_shape(1))))
            original(branch, layer)

        monkeypatch.setattr(low_rank_products, name, note)
    unet = Checkpoint.open(lora_package.parent / "checkpoint").load("unet")
    lora = save_peft(tmp_path / "a.safetensors", random_lora({"unet": unet}, ATTENTION))
    with load_pipeline(lora_package, "openvino") as pipe:
        sides = {"width": side, "height": side}
        pipe("a", **sides, guidance_scale=1.0, num_inference_steps=1, loras=[lora])
        package = pipe.package
    latents = side // 8, side // 8
    found = merged_weights(package, "unet.lora", 1, latents, in_bfloat16=False)
    assert found == sum(merged) > 0
    in_bfloat16 = merged_weights(package, "unet.lora", 1, latents, in_bfloat16=True)
    assert (in_bfloat16 > found) is (side == 128)
    assert merged_weights(package, "unet.lora", 1, (1, 1), in_bfloat16=False) == 0
    assert merged_weights(package, "unet.none", 1, latents, in_bfloat16=False) == 0

    def need(kinds: frozenset[AdapterKind], backend: str) -> int:
        calls = image_calls(package, width=side, height=side, guided=False, kinds=[kinds])
        return memory_need(package, calls, parse_backends([backend])) or 0

    assert need(LORA, "openvino") - need(PLAIN, "openvino") == 8 * found
    assert need(LORA, "onnxruntime") == need(PLAIN, "onnxruntime")
