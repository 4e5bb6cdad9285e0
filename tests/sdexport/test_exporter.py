"""Exports are atomic and repeatable, and reject what is not supported."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdexport import Package, PackageError
from sdexport import exporter as export_module
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines.errors import CheckpointError, VerificationError
from sdexport.exporter import export
from sdexport.verification.limits import RANGES
from tests.tolerances import COMPONENT_REL


@pytest.fixture
def checkpoint_copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


def test_manifest_tells_what_was_exported(package: Path) -> None:
    manifest = Package.load(package).manifest
    assert manifest.source["type"] == "folder" and len(manifest.source["sha256"]) == 64
    assert {c.opset for c in manifest.components.values()} == {23}
    assert manifest.tools.keys() >= {"torch", "onnx", "sdexport"}
    assert manifest.verification is not None
    figures = manifest.verification["unet.out_sample"]
    assert 0 < figures["relative_l2"] <= COMPONENT_REL and 0 < figures["max_abs"] <= COMPONENT_REL
    text = (package / "sdexport.json").read_text(encoding="utf-8")
    assert str(package.parent) not in text and "/home" not in text


def test_graphs_hold_no_paths_of_this_machine(package: Path) -> None:
    import onnx

    for path in package.rglob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        text = str([*model.graph.metadata_props])
        text += str([p for node in model.graph.node for p in node.metadata_props])
        assert text == "[][]" and "site-packages" not in str(model.graph.value_info)
        onnx.checker.check_model(str(path), full_check=True)
        dims = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim}
        assert dims <= {"", "batch", "height", "width", "sequence", "image_height", "image_width"}


def test_graphs_say_what_they_are(package: Path) -> None:
    """For a graph that is found alone; the manifest says the same."""
    import onnx

    manifest = Package.load(package).manifest
    for name in manifest.components:
        model = onnx.load(package / name / "model.onnx", load_external_data=False)
        assert {entry.key: entry.value for entry in model.metadata_props} == {
            "sdexport": manifest.tools["sdexport"],
            "component": name,
            "family": "stable-diffusion",
            "precision": "fp32",
            "source.type": "folder",
            "source.sha256": manifest.source["sha256"],
        }
        assert model.graph.name == name and name in model.doc_string
        assert model.producer_name == "sdexport"


def without_progress(errors: str) -> list[str]:
    """The lines of stderr that are no progress, which is printed on slow machines."""
    return [line for line in errors.splitlines() if not line.startswith(("export: ", "export ("))]


def test_second_export_has_the_same_bytes(package: Path, checkpoint: Path, tmp_path: Path) -> None:
    """In another process and folder, from another copy of the checkpoint."""
    source = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    again = tmp_path / "deep" / "again"
    command = [sys.executable, "-m", "sdexport", "export", str(source), str(again)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert without_progress(done.stderr) == []
    files = sorted(f.relative_to(package) for f in package.rglob("*") if f.is_file())
    assert files == sorted(f.relative_to(again) for f in again.rglob("*") if f.is_file())
    different = [f for f in files if (package / f).read_bytes() != (again / f).read_bytes()]
    assert different == []


def test_existing_destination_needs_force(package: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists; use --force"):
        export(checkpoint, package)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(FileExistsError, match="is not a package; it is not replaced"):
        export(checkpoint, photos, force=True)
    assert (photos / "holiday.jpg").exists()


@pytest.mark.usefixtures("without_tracing")
def test_force_replaces_a_package(checkpoint: Path, package_copy: Path) -> None:
    (package_copy / "left-over").write_text("x")
    stages: list[str] = []
    totals: set[int] = set()

    def progress(component: str, stage: str, total: int) -> None:
        stages.append(f"{component} {stage}")
        totals.add(total)

    export(checkpoint, package_copy, force=True, progress=progress)
    Package.load(package_copy)
    assert not (package_copy / "left-over").exists()
    assert [f.name for f in package_copy.parent.iterdir()] == [package_copy.name]
    assert "unet trace" in stages and stages[-1] == "image verify"
    assert totals == {len(stages)}


@pytest.mark.usefixtures("without_tracing")
def test_destination_that_appears_meanwhile_is_left_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear(*_: object) -> None:
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "another's").write_text("x")

    monkeypatch.setattr(export_module, "write", appear)
    monkeypatch.setattr(export_module, "verified", lambda *_: {})
    with pytest.raises(FileExistsError, match="created by another process in the meantime"):
        export(checkpoint, tmp_path / "package")
    assert [f.name for f in tmp_path.iterdir()] == ["package"]
    assert (tmp_path / "package" / "another's").read_text() == "x"


@pytest.mark.usefixtures("without_tracing")
def test_force_through_a_link_replaces_what_it_points_to(
    checkpoint: Path, package_copy: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(package_copy, target_is_directory=True)
    (package_copy / "left-over").write_text("x")
    export(checkpoint, link, force=True)
    assert link.is_symlink() and not (package_copy / "left-over").exists()
    Package.load(link)


@pytest.mark.usefixtures("without_tracing")
def test_error_of_pytorch_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operator is not implemented")

    monkeypatch.setattr(export_module, "record_component", fail)
    message = r"PyTorch cannot run or trace it: .*not implemented"
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_tracing")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_failure_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise error("stopped here")

    monkeypatch.setattr(export_module, "write", fail)
    with pytest.raises(error, match="stopped here"):
        export(checkpoint, tmp_path / "out" / "package")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("without_tracing")
def test_export_that_does_not_verify_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(RANGES["fp32"], max_abs=(1e-12, 1e-12))
    monkeypatch.setitem(RANGES, "fp32", strict)
    with pytest.raises(
        VerificationError,
        match=r"do not reproduce PyTorch.*unet out_sample: FAILED [^\n]* of the limit 1e-12",
    ):
        export(checkpoint, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_export_leaves_no_package(checkpoint: Path, tmp_path: Path, number: int) -> None:
    target = tmp_path / "package"
    command = [sys.executable, "-m", "sdexport", "export", str(checkpoint), str(target)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a run in the background inherits an ignored SIGINT, which no user's terminal does
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".package.*/package/reference/text_encoder.npz")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert not target.exists()
    if number == signal.SIGINT:
        assert (process.returncode, without_progress(errors.decode())) == (130, [])
        assert list(tmp_path.iterdir()) == []
    elif number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert list(tmp_path.iterdir()) == []
    else:
        (left,) = tmp_path.iterdir()
        for folder in (left, left / "package"):
            with pytest.raises(PackageError, match="is an unfinished export"):
                Package.load(folder)


def test_parent_that_is_a_file(checkpoint: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.raises(OSError, match="file"):
        export(checkpoint, blocked / "package")


@pytest.mark.parametrize("opset", [17, 25, -1])
def test_opset_out_of_range(checkpoint: Path, tmp_path: Path, opset: int) -> None:
    with pytest.raises(ValueError, match="opset must be 18 to 24"):
        export(checkpoint, tmp_path / "package", opset=opset)


def test_source_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        export(tmp_path / "nowhere", tmp_path / "package")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="does not begin with its header"):
        export(tmp_path / "model.safetensors", tmp_path / "package")
    with pytest.raises(CheckpointError, match=r"has no model_index\.json"):
        export(tmp_path, tmp_path / "package")


def test_hub_offline_says_so() -> None:
    with pytest.raises(ConnectionError, match="it could not be fetched from the hub"):
        Checkpoint.open("nobody/no-such-model")


@pytest.mark.parametrize("path", ["./no-such-model", "../no-such-model"])
def test_missing_folder_that_looks_like_a_hub_id(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "'FluxPipeline' are not supported"),
        ("model_index.json", {"unet": ["diffusers", "Other"]}, "only UNet2DConditionModel"),
        ("unet/config.json", {"in_channels": 5}, "unet.in_channels to be vae.latent_channels"),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            "a unet with text and time conditioning",
        ),
        ("unet/config.json", {"cross_attention_dim": 768}, "to be text_encoder.hidden_size"),
    ],
)
def test_checkpoint_of_another_kind(
    checkpoint_copy: Path, file: str, change: dict[str, Any], message: str
) -> None:
    path = checkpoint_copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(checkpoint_copy)


@pytest.mark.parametrize(
    "name",
    ["unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "vae/config.json"],
)
def test_checkpoint_with_missing_files(checkpoint_copy: Path, name: str) -> None:
    (checkpoint_copy / name).unlink()
    with pytest.raises(CheckpointError, match=Path(name).name):
        Checkpoint.open(checkpoint_copy)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_checkpoint_with_truncated_weights(checkpoint_copy: Path, part: str) -> None:
    path = next((checkpoint_copy / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=f"cannot load {part}"):
        Checkpoint.open(checkpoint_copy).load(part)


def test_checkpoint_with_nan(checkpoint_copy: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = checkpoint_copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"weight decoder\.conv_in\.weight holds NaN"):
        Checkpoint.open(checkpoint_copy).load("vae")


def test_checkpoint_with_weights_of_another_shape(checkpoint_copy: Path) -> None:
    path = checkpoint_copy / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"block_out_channels": [64, 128, 128]}))
    with pytest.raises(CheckpointError, match="cannot load unet"):
        Checkpoint.open(checkpoint_copy).load("unet")


def test_checkpoint_reads_shards(checkpoint_copy: Path, modules: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    folder = checkpoint_copy / "unet"
    whole = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(whole)
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: weights[key] for key in keys}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: f for f, keys in halves.items() for k in keys}}
    (folder / f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    loaded = Checkpoint.open(checkpoint_copy).load("unet").state_dict()
    assert all((loaded[k] == v).all() for k, v in modules["unet"].state_dict().items())


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", None, 3])
def test_checkpoint_with_shards_elsewhere(checkpoint_copy: Path, name: object) -> None:
    whole = checkpoint_copy / "unet" / "diffusion_pytorch_model.safetensors"
    index = {"weight_map": {"conv_in.weight": name}}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    with pytest.raises(CheckpointError, match="names files outside of its folder"):
        Checkpoint.open(checkpoint_copy)


def test_tokenizer_config_holds_no_path(
    checkpoint_copy: Path, tmp_path: Path, without_tracing: None
) -> None:
    path = checkpoint_copy / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"name_or_path": "/somewhere/private"}))
    export(checkpoint_copy, tmp_path / "package")
    texts = [f.read_text() for f in (tmp_path / "package").rglob("*.json")]
    assert not any("private" in text for text in texts)


def test_checkpoint_with_a_missing_weight(checkpoint_copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    for part in ("text_encoder", "unet", "vae"):
        path = next((checkpoint_copy / part).glob("*.safetensors"))
        weights = load_file(path)
        del weights[sorted(weights)[0]]
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"1 of \d+ weights are missing"):
            Checkpoint.open(checkpoint_copy).load(part)
