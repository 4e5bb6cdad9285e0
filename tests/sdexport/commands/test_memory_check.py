"""Memory that is said beforehand: warnings, errors, and the option that goes on all the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdexport import ControlNet, IPAdapter, Package, PackageError, T2IAdapter
from sdexport.cli import main
from sdexport.commands import memory_check, progress
from tests.helpers.changed_package import accept_files


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (4032, 3024), "gray").save(path)
    return path


def test_field_case_r8_photo_without_a_size(
    package: Path, photo: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size and how to limit it are said before the work; nothing is generated."""
    monkeypatch.setattr(progress, "LINE", 3600.0)  # a busy machine would write a line of its own
    out = photo.with_name("a.png")
    result = call("generate", package, "x", "-o", out, "--image", photo, "--steps", 2)
    assert result.exit_code == 1 and not out.exists(), result.output
    (warning,), (error,) = caplog.messages, result.stderr.splitlines()
    assert "photo.jpg has 4032x3024 pixels, and the model's own size is 128x128" in warning
    assert "--size limits it" in warning
    assert error.startswith("error: an image of 4032x3024 needs about ")
    assert "use a smaller --size, or --low-memory, or begin anyway with --ignore-memory" in error
    caplog.clear()
    limited = call(
        *("generate", package, "x", "-o", out, "--image", photo, "--steps", 2, "--size", "128x96")
    )
    assert limited.exit_code == 0 and not caplog.messages, limited.output


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["generate", "PACKAGE", "x", "-o", "TMP/a.png", "--steps", "1"], "an image of 128x128"),
        (["verify", "PACKAGE"], "verifying this package"),
        (
            ["build", "PACKAGE", "--backend", "onnxruntime", "--engine-dir", "TMP/engines"],
            "this build",
        ),
        (["export", "CHECKPOINT", "TMP/exported"], "this export"),
    ],
)
def test_every_command_checks_before_the_work(
    command: list[str],
    what: str,
    package: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = {"PACKAGE": package, "CHECKPOINT": checkpoint, "TMP": tmp_path}
    for name, path in names.items():
        command = [part.replace(name, str(path)) for part in command]
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 1_000_000)
    result = call(*command)
    assert result.exit_code == 1 and list(tmp_path.iterdir()) == [], result.output
    assert result.stderr.startswith(f"error: {what} needs about "), result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    if command[0] != "export":  # which takes half a minute
        result = call(*command, "--ignore-memory")
        assert result.exit_code == 0, result.output
        assert caplog.messages[0].startswith(f"{what} needs about ")


def test_need_that_may_just_fit_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 100)
    memory_check.check_memory(125, "x", "y", ignore=False)
    with pytest.raises(MemoryError, match="x needs about"):
        memory_check.check_memory(126, "x", "y", ignore=False)
    memory_check.check_memory(None, "x", "y", ignore=False)
    monkeypatch.setattr(memory_check, "available_bytes", lambda: None)
    memory_check.check_memory(10**20, "x", "y", ignore=False)


def test_size_is_that_of_the_first_control_image(
    package: Path, photo: Path, tmp_path: Path
) -> None:
    """If there is no input image, or only a part of one is generated; as of a pipeline call."""
    np.save(tmp_path / "masked.npy", np.zeros((72, 80, 3), np.float32))
    Image.new("RGB", (96, 64)).save(tmp_path / "small.png")
    of_npy = {"controlnets": [ControlNet("x", [tmp_path / "masked.npy", photo])]}
    of_photo = {"t2i_adapters": [T2IAdapter("x", photo)]}
    small = {"image": tmp_path / "small.png"}
    loaded = Package.load(package)

    def size(**arguments: Any) -> tuple[Any, ...]:
        return memory_check._size(loaded, arguments)[:2]

    assert size(**of_photo) == (4032, 3024)
    assert size(**of_npy, **of_photo) == (80, 72)
    assert size(**of_photo, **small) == (96, 64)
    assert size(**of_photo, **small, padding_mask_crop=8) == (4032, 3024)
    assert size(**small, padding_mask_crop=8) == size(controlnets=None) == (128, 128)
    assert size(**of_photo, width=64, height=64) == (64, 64)
    assert size(t2i_adapters=[T2IAdapter("x", tmp_path / "none.png")]) == (128, 128)


def test_loras_of_every_form_are_left_to_the_pipeline(tmp_path: Path) -> None:
    """Whatever a file of prompts holds; paths alone count."""

    class Job:
        def __init__(self, loras: object) -> None:
            self.arguments = {"loras": loras}

    path = tmp_path / "a.safetensors"
    for loras in (None, "x", 5, {}, [5], [[]], [["a"]], [[None, 1]], [["a", 1, 2]]):
        found = memory_check._loras(Job(loras))
        assert found == []
    given = [path, str(path), (path, 0.5), [str(path), [0.5, 1]]]
    assert memory_check._loras(Job(given)) == [path] * 4


def test_every_kind_of_adapter_counts(
    image_adapters: Path, control_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs: list[int] = []
    monkeypatch.setattr(memory_check, "check_memory", lambda need, *_, **__: needs.append(need))
    image = Image.new("RGB", (64, 64))
    folders = {kind: image_adapters / kind for kind in ("t2i", "base")}
    folders["net"] = control_folder / "first"
    adapters: dict[str, Any] = {
        "t2i_adapters": [T2IAdapter(folders["t2i"], image)],
        "ip_adapters": [IPAdapter(folders["base"], image)],
        "controlnets": [ControlNet(folders["net"], image)],
    }

    def need(low_memory: bool = False, **arguments: Any) -> int:
        job = SimpleNamespace(arguments={"width": 64, "height": 64, **arguments})
        used, opened_with = memory_check.adapters_of([job]), {"low_memory": low_memory}
        memory_check.check_images(pipe, [job], used, opened_with, ignore=False)
        return needs.pop()

    pipe = SimpleNamespace(package=Package.load(image_adapters / "package"))
    plain = need()
    for (name, given), folder in zip(adapters.items(), folders.values(), strict=True):
        weights = sum(path.stat().st_size for path in folder.glob("*/model.onnx*"))
        assert need(**{name: given}) >= plain + weights > plain
        assert (need(low_memory=True, **{name: given}) > need(low_memory=True)) is (
            name == "controlnets"
        )
    damaged = shutil.copytree(folders["t2i"], tmp_path / "t2i")
    (damaged / "t2i_adapter" / "config.json").write_text('{"channels": 7}')
    accept_files(damaged, "t2i_adapter/config.json")
    with pytest.raises(PackageError, match="t2i is damaged"):
        need(t2i_adapters=[T2IAdapter(damaged, image)])


def test_factors_of_loras_and_further_graphs_count(
    lora_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images without LoRAs run another graph than those with some, and both stay open."""
    needs: list[int] = []
    monkeypatch.setattr(memory_check, "check_memory", lambda need, *_, **__: needs.append(need))
    pipe = SimpleNamespace(package=Package.load(lora_package))
    (tmp_path / "folder").mkdir()
    files = {"small.safetensors": 1_000, "folder/pytorch_lora_weights.safetensors": 10_000}
    for name, size in files.items():
        (tmp_path / name).write_bytes(bytes(size))
    small, large = tmp_path / "small.safetensors", tmp_path / "folder"

    def need(*of_jobs: list[Path], low_memory: bool = False) -> int:
        jobs = [
            SimpleNamespace(
                arguments={"width": 64, "height": 64, "loras": [(path, 1.0) for path in paths]}
            )
            for paths in of_jobs
        ]
        memory_check.check_images(pipe, jobs, {}, {"low_memory": low_memory}, ignore=False)
        return needs.pop()

    plain = need([])
    assert need([small]) - plain == 4 * 1_000  # kept in float32, and joined for a call
    assert need([small], [large]) - plain == 2 * 11_000 + 2 * 10_000
    assert need([small, large]) - plain == 4 * 11_000
    assert need([tmp_path / "none"]) == plain
    weights = sum(record.size for record in pipe.package.manifest.components["unet"].files)
    assert need([], [small]) > plain + weights
    assert need([], [small], low_memory=True) == need([small], low_memory=True)
