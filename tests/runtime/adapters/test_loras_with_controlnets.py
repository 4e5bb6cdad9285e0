"""LoRAs together with a ControlNet: one graph takes both, with and without LoRAs in a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import ControlNet, load_pipeline
from sdexport.adapter_exporter import export_adapter
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.exporter import export
from tests.helpers.control_nets import build_controlnet, control_image
from tests.helpers.families import build
from tests.helpers.lora_files import ATTENTION, WIDE, random_lora, save_peft
from tests.tolerances import IMAGE_ABS


@pytest.mark.slow
def test_openvino_compiles_again_for_larger_ranks_alone(tmp_path: Path) -> None:
    checkpoint = build("sd1", tmp_path / "checkpoint")
    package = tmp_path / "package"
    export(checkpoint, package, lora_inputs=True, controlnet_inputs=True)
    export_adapter(build_controlnet(checkpoint, tmp_path / "net"), tmp_path / "controlnet")
    unet = {"unet": Checkpoint.open(checkpoint).load("unet")}
    narrow = save_peft(tmp_path / "narrow.safetensors", random_lora(unet, ATTENTION))
    wide = save_peft(tmp_path / "wide.safetensors", random_lora(unet, WIDE, rank=20))
    net = ControlNet(tmp_path / "controlnet", control_image(64, 64), 0.8)
    call: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "height": 64, "width": 64}
    compiled = []
    with load_pipeline(package) as expected, load_pipeline(package, "openvino") as found:
        for loras in (None, [(narrow, 0.5)], None, [(wide, 0.5)], None, [(narrow, 1.0)]):
            images = [
                np.asarray(pipe("x", **call, controlnets=[net], loras=loras).images[0]).astype(int)
                for pipe in (expected, found)
            ]
            assert np.abs(images[0] - images[1]).max() <= IMAGE_ABS, loras
            graph: Any = found.session("unet.adapters") if loras else None
            compiled.append(None if graph is None else graph._compiled)
    _, first, _, second, _, third = compiled
    assert first.shapes and first.empty and second.shapes and not second.empty
    assert third is second
