"""T2I-Adapters in files of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport.checkpoints.adapter_source import open_adapter
from sdexport.engines.errors import CheckpointError
from tests.helpers.image_adapters import random_t2i_adapter

KINDS = ("full_adapter", "light_adapter", "full_adapter_xl")


def original_names(kind: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as the adapter's authors named them; two blocks in every level."""
    found = {}
    for name, value in state.items():
        start, *rest = name.removeprefix("adapter.").split(".")
        if kind == "light_adapter" and rest[1:2] == ["resnets"]:
            rest[1] = "body"
        elif start == "body" and rest[1] == "resnets":
            rest = [str(2 * int(rest[0]) + int(rest[2])), *rest[3:]]
        elif start == "body" and kind != "light_adapter":
            rest[0] = str(2 * int(rest[0]))
        found[".".join([start, *rest])] = value
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_file_is_read_as_the_folder(
    kind: str, original: bool, channels: int, tmp_path: Path
) -> None:
    adapter = random_t2i_adapter(kind, seed=1, channels=channels)
    adapter.save_pretrained(tmp_path / "folder")
    state = {name: value.contiguous() for name, value in adapter.state_dict().items()}
    save_file(original_names(kind, state) if original else state, tmp_path / "a.safetensors")
    one, two = (open_adapter(tmp_path / name) for name in ("folder", "a.safetensors"))
    image = torch.rand(1, channels, 64, 96)
    with torch.inference_mode():
        expected = adapter(image)
        for opened in (one, two):
            found = opened.load("t2i_adapter")(image)
            assert len(found) == len(expected)
            assert all(map(torch.equal, found, expected)), (kind, original)


def test_damaged_folders(tmp_path: Path) -> None:
    random_t2i_adapter("full_adapter").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def fails(changed: dict[str, object], message: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(CheckpointError, match=message):
            open_adapter(tmp_path)

    fails({"adapter_type": "other"}, "expected adapter_type of full_adapter")
    fails({"in_channels": 4}, "expected 1 or 3 channels of the image")
    fails({"downscale_factor": 0}, "expected a downscale_factor of 8, 16, 32")
    fails({"channels": []}, "expected a list of channels")
    fails({"channels": [16, 32, 64]}, "are missing or of another shape")
    fails({"num_res_blocks": 3}, "are missing or of another shape")
    fails({"channels": ["x"]}, "expected a list of channels")
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    save_file(
        {**weights, "adapter.other": torch.zeros(3)},
        tmp_path / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"adapter\.other"):
        open_adapter(tmp_path)
    weights["adapter.conv_in.weight"] = torch.full((16, 192, 3, 3), torch.nan)
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        open_adapter(tmp_path).load("t2i_adapter")
