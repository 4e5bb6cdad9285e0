"""A package that changes on disk after it was loaded is never opened in part."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport import Package, PackageError, Pipeline, load_pipeline

CHANGED = "the package changed on disk; load it again"


def _again(path: Path) -> None:
    """Replace a file by an equal one, as an export of the same checkpoint would."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    os.replace(copy, path)


def _generate(pipe: Pipeline) -> object:
    return pipe("a red circle", num_inference_steps=1, height=64, width=64, seed=1)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["text_encoder/model.onnx", "unet/model.onnx.data"])
def test_graphs_are_opened_only_as_they_were_checked(
    package_copy: Path, backend: str, name: str
) -> None:
    if not (package_copy / name).exists():
        name = name.removesuffix(".data")
    with load_pipeline(package_copy, backend) as pipe:
        _again(package_copy / name)
        with pytest.raises(PackageError, match=CHANGED):
            _generate(pipe)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_opened_pipeline_goes_on_after_the_package_was_replaced(
    package_copy: Path, backend: str
) -> None:
    with (
        load_pipeline(package_copy, backend, static=False)
        if backend == "openvino"
        else (load_pipeline(package_copy, backend)) as pipe
    ):
        first = _generate(pipe)
        for path in [*package_copy.rglob("*")]:
            if path.is_file():
                _again(path)
        second = _generate(pipe)
    assert first.images[0].tobytes() == second.images[0].tobytes()  # type: ignore[attr-defined]


def test_openvino_compiles_again_only_from_the_checked_file(package_copy: Path) -> None:
    with load_pipeline(package_copy, "openvino") as pipe:
        _generate(pipe)
        _again(package_copy / "unet" / "model.onnx")
        with pytest.raises(PackageError, match=CHANGED):
            pipe("a red circle", num_inference_steps=1, height=72, width=64, seed=1)


def test_low_memory_opens_only_the_checked_files(package_copy: Path) -> None:
    with load_pipeline(package_copy, low_memory=True) as pipe:
        _generate(pipe)
        _again(package_copy / "vae_decoder" / "model.onnx")
        with pytest.raises(PackageError, match=CHANGED):
            _generate(pipe)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("tokenizer/vocab.json", lambda package: package.tokenizer("text_encoder")),
        ("unet/config.json", lambda package: package.config("unet")),
        ("unet/model.onnx", lambda package: package.model_files("unet").check()),
    ],
)
def test_files_are_read_only_as_they_were_checked(
    package_copy: Path, name: str, read: Callable[[Package], object]
) -> None:
    loaded = Package.load(package_copy, verify=False)
    read(loaded)
    (package_copy / name).write_bytes((package_copy / name).read_bytes() + b" ")
    with pytest.raises(PackageError, match=CHANGED):
        read(loaded)


def test_every_file_is_checked_as_it_is_opened(package_copy: Path) -> None:
    loaded = Package.load(package_copy)
    folder = loaded.folder
    for record in loaded.manifest.every_file:
        loaded.files.of([folder / record.path]).check()
