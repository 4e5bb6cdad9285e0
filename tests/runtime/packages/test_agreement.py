"""A manifest that was edited, with its digest, still disagrees with the files of the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport import Package, PackageError
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.onnx_file.graph_survey import survey
from tests.helpers.changed_package import accept_files, edit_manifest, remove_notes

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(PACKAGE_DIR, tmp_path / "package")


def unet(**values: object) -> Change:
    return lambda manifest: manifest["components"]["unet"].update(values)


def rename_input(manifest: dict[str, Any]) -> None:
    manifest["components"]["unet"]["inputs"][0]["name"] = "latents"


@pytest.mark.parametrize(
    ("change", "file", "what"),
    [
        (lambda m: m.update(scaling_factor=0.18215), "vae_decoder/config.json", "scaling_factor"),
        (
            lambda m: m.update(downscale=4, default_size=[64, 64]),
            "vae_decoder/config.json",
            "downscale",
        ),
        (
            lambda m: m.update(latent_channels=8, preview=[[0.0] * 3] * 9),
            "unet/config.json",
            "the number of channels",
        ),
        (
            lambda m: m.update(latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
            "vae_decoder/config.json",
            "latents_mean",
        ),
        (
            lambda m: m.update(prediction_type="v_prediction"),
            "scheduler/scheduler_config.json",
            "prediction_type: 'v_prediction' and 'epsilon'",
        ),
        (lambda m: m.update(default_size=[64, 64]), "unet/config.json", "default_size"),
        (lambda m: m.update(default_size=[128, 64]), "unet/config.json", "default_size"),
        (
            lambda m: m.update(family="stable-diffusion-inpainting"),
            "unet/config.json",
            "the number of channels",
        ),
        (
            lambda m: m.update(family="latent-consistency"),
            "unet/config.json",
            "the guidance embedding",
        ),
        (unet(precision="fp32"), "unet/model.onnx", "precision: 'fp32' and 'fp16'"),
        (unet(opset=22), "unet/model.onnx", "opset: 22 and 23"),
        (unet(outputs=[]), "unet/model.onnx", "outputs"),
        (rename_input, "unet/model.onnx", "inputs"),
        (lambda m: m["source"].update(sha256="0" * 64), "model.onnx", "source.sha256"),
        (lambda m: m["source"].update(type="hub"), "model.onnx", "source.type"),
        (lambda m: m["tools"].update(sdexport="9.9"), "model.onnx", "sdexport: '9.9'"),
    ],
)
def test_edited_manifest_disagrees(folder: Path, change: Change, file: str, what: str) -> None:
    edit_manifest(folder, change)
    with pytest.raises(PackageError) as error:
        Package.load(folder, verify=False)
    message = str(error.value)
    assert file in message and f"disagree about {what}" in message and "\n" not in message


def test_vae_encoder_of_another_checkpoint_disagrees(folder: Path) -> None:
    path = folder / "vae_encoder" / "config.json"
    config = json.loads(path.read_text()) | {"scaling_factor": 0.13025}
    path.write_text(json.dumps(config))
    accept_files(folder)
    with pytest.raises(PackageError, match=r"vae_encoder/config\.json disagree about scaling_fa"):
        Package.load(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_size", "large"),
        ("sample_size", [1]),
        ("latents_mean", "none"),
        ("block_out_channels", 3),
    ],
)
def test_configuration_of_no_sense_is_one_line(folder: Path, name: str, value: object) -> None:
    for part in ("unet", "vae_decoder"):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    accept_files(folder)
    with pytest.raises(PackageError, match=r"config\.json is damaged: [^\n]*$"):
        Package.load(folder)


def test_graphs_without_notes_are_compared_by_inputs_and_outputs_alone(folder: Path) -> None:
    remove_notes(folder)
    accept_files(folder)
    Package.load(folder)
    edit_manifest(folder, unet(outputs=[]))
    with pytest.raises(PackageError, match="disagree about outputs"):
        Package.load(folder)


def test_notes_of_a_graph() -> None:
    notes = survey(PACKAGE_DIR / "unet" / "model.onnx")
    assert notes.opset == 23 and notes.metadata["precision"] == "fp16"


def test_long_notes_are_left_out_and_many_are_rejected(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(PACKAGE_DIR / "vae_encoder" / "model.onnx")
    model.metadata_props.add(key="long", value="y" * 50_000_000)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert "long" not in survey(path).metadata
    for number in range(300):
        model.metadata_props.add(key=str(number), value="")
    onnx.save(model, path)
    with pytest.raises(ValueError, match="more than 256 metadata entries"):
        survey(path)
