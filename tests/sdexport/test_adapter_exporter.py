"""Packages of adapters: sources, verification, inspection, builds and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

import sdexport
from sdexport import CheckpointError, PackageError
from sdexport.checkpoints.adapter_source import open_adapter
from sdexport.checkpoints.controlnet_source import controlnet_in_file
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.cli import main
from sdexport.runtime.packages.manifest import read_manifest
from sdexport.runtime.packages.package import Package
from tests.helpers.control_nets import EMBEDDING, original_layout_of
from tests.helpers.original_layout import SMALL, random_modules


@pytest.fixture
def net(control_folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder of a ControlNet, which may be changed."""
    return Path(shutil.copytree(control_folder / "first-net", tmp_path / "net"))


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_package_is_verified_and_inspected(backend: str, control_folder: Path) -> None:
    checks = sdexport.verify(control_folder / "first", backend)
    assert {check.name for check in checks} == {"package", "control_embedding", "controlnet"}
    assert checks.passed
    status, output = run("inspect", control_folder / "first")
    assert status == 0
    assert "family      controlnet" in output.replace("family     ", "family      ")
    assert "scheduler" not in output
    status, output = run("verify", control_folder / "first", "--backend", backend)
    assert status == 0, output


def test_manifest_names_no_settings_of_models(control_folder: Path) -> None:
    values = json.loads((control_folder / "first" / "sdexport.json").read_text())
    assert not {"scaling_factor", "default_size", "prediction_type"} & values.keys()
    manifest = read_manifest(control_folder / "first")
    assert (manifest.family, manifest.latent_channels, manifest.downscale) == ("controlnet", 4, 8)


@pytest.mark.parametrize("file", ["controlnet/model.onnx", "reference/controlnet.npz"])
def test_altered_files_are_noticed(file: str, control_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(control_folder / "first", tmp_path / "copy"))
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(bytes(content))
    with pytest.raises(PackageError, match=r"altered|not well-formed"):
        Package.load(copy)
    (copy / file).unlink()
    with pytest.raises(PackageError, match="missing"):
        Package.load(copy)


def test_builds(control_folder: Path, tmp_path: Path) -> None:
    built = sdexport.build(control_folder / "first", "onnxruntime", engine_dir=tmp_path)
    assert [each.sidecar.component for each in built] == ["control_embedding", "controlnet"]


def state_of(net: Path) -> dict[str, torch.Tensor]:
    return load_file(net / "diffusion_pytorch_model.safetensors")


def test_file_in_the_layout_of_diffusers(net: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(state_of(net), path)
    unet = json.loads((net / "config.json").read_text())
    found = controlnet_in_file(WeightFile.open(path), [unet])
    assert found is not None
    expected = ControlNetModel.from_pretrained(net).state_dict()
    loaded = found["loader"]("controlnet").state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


@pytest.mark.parametrize("family", [SMALL[0], SMALL[2]], ids=lambda family: family.name)
def test_file_in_the_original_layout(family: Any, tmp_path: Path) -> None:
    unet = random_modules(family)["unet"]
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EMBEDDING)
    path = tmp_path / "net.safetensors"
    other = {"model.diffusion_model.out.0.weight": torch.zeros(3)}  # of the model itself
    save_file({**original_layout_of(net), **other}, path)
    found = controlnet_in_file(WeightFile.open(path), [family.unet])
    assert found is not None
    loaded = found["loader"]("controlnet").state_dict()
    expected = net.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lora_controlnet", "Control-LoRA"),
        ("lllite_unet_controlnet.down.0.weight", "LLLite"),
        ("control_model.task_embedding", "ControlNet-Union in another layout"),
        ("control_model.down_blocks.0.base_to_ctrl.0.weight", "ControlNet-XS"),
    ],
)
def test_other_kinds_are_rejected_by_name(name: str, what: str, net: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({**state_of(net), name: torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match=what):
        open_adapter(path)


def change(net: Path, **values: Any) -> None:
    path = net / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "ControlNetUnionModel"}, "num_trans_channel and num_proj_channel"),
        ({"_class_name": "MultiControlNetModel"}, "several ControlNets"),
        ({"_class_name": ["x"]}, "not supported"),
        ({"class_embed_type": "timestep"}, "class conditioning"),
        ({"in_channels": 9}, "another shape"),
        ({"controlnet_conditioning_channel_order": "grb"}, "rgb or bgr"),
        ({"conditioning_channels": 4}, "3 conditioning_channels"),
        ({"block_out_channels": []}, "lists of channels"),
        ({"block_out_channels": [16, "x"]}, "net"),
    ],
    ids=str,
)
def test_wrong_configurations(values: dict[str, Any], message: str, net: Path) -> None:
    change(net, **values)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(net)


def test_wrong_weights(net: Path, tmp_path: Path) -> None:
    weights = net / "diffusion_pytorch_model.safetensors"
    state = state_of(net)
    save_file({**state, "another.weight": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match=r"another\.weight"):
        open_adapter(net)
    state["conv_in.weight"][0] = np.nan
    save_file(state, weights)
    with pytest.raises(CheckpointError, match="NaN"):
        sdexport.export_adapter(net, tmp_path / "package")
    assert not (tmp_path / "package").exists()
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        open_adapter(net)


def test_sources_that_are_none(lora_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a whole pipeline"):
        open_adapter(lora_folder / "checkpoint")
    with pytest.raises(CheckpointError, match="UNet2DConditionModel"):
        open_adapter(lora_folder / "checkpoint" / "unet")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_adapter(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_adapter(tmp_path / "a" / "b" / "c")


@pytest.mark.slow
def test_lower_precision(net: Path, tmp_path: Path) -> None:
    change(net, global_pool_conditions=True, controlnet_conditioning_channel_order="bgr")
    manifest = sdexport.export_adapter(net, tmp_path / "half", precision="fp16")
    assert manifest.components["controlnet"].precision == "fp16"
    assert manifest.verified_with == "onnxruntime"
    with pytest.raises(FileExistsError):
        sdexport.export_adapter(net, tmp_path / "half")
