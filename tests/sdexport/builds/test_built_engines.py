"""sdexport inspect on engines: what was built, and what of it still fits."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sdexport import Package
from sdexport.builds.built_engines import ALTERED, FRESH, STALE, built_engines
from sdexport.cli import main
from sdexport.engines import cuda_device
from sdexport.engines.cache.sidecar import StoredFile, sidecar_path
from sdexport.engines.errors import MissingDependencyError
from tests.helpers.fake_tensorrt import VERSION, install, write_plan

RTX = "tensorrt-rtx"


@pytest.fixture
def folder(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one engine for the UNet, and the stand-ins for library and GPU."""
    install(monkeypatch)
    (tmp_path / RTX).mkdir()
    write(package, tmp_path)
    return tmp_path


def write(package: Path, folder: Path, component: str = "unet", **changes: Any) -> Path:
    model = package / component / "model.onnx"
    return write_plan(model, folder / RTX / f"{component}.plan", RTX, **changes)


def look(package: Path, folder: Path) -> dict[str, Any]:
    (found,) = built_engines(Package.load(package, verify=False), folder)
    return found


def inspect(package: Path, folder: Path, *arguments: str) -> str:
    command = ["inspect", str(package), "--engine-dir", str(folder), *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_inspect_shows_a_fresh_engine(package: Path, folder: Path) -> None:
    write(package, folder, options={"refittable": True, "workspace": None, "optimization_level": 3})
    text = inspect(package, folder)
    assert f"engine unet: tensorrt-rtx {VERSION}, 0.0 MB" in text
    assert "profile: batch 1:2:8, height 1:16:64, sequence 1:77:231, width 1:16:64" in text
    assert "options: optimization level 3, refittable\n  fresh\n" in text
    (entry,) = json.loads(inspect(package, folder, "--json"))["engines"]
    assert entry["fits"] and entry["size"] == 4 and not entry["refits"]
    assert entry["profiles"][0]["batch"] == "1:2:8"
    assert entry["target"] == {"compute_capabilities": "portable"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"library_version": "1.0"}, "built with TensorRT-RTX 1.0, here is 99.9.9"),
        ({"target": {"compute_capabilities": "12.0"}}, "compute capability 12.0, here is 8.9"),
        ({"onnx_sha256": "0" * 64}, "of the same graph: --refittable would take its weights"),
        ({"onnx_sha256": "0" * 64, "graph_sha256": "0" * 64}, "built from another ONNX file"),
        (
            {"package_sha256": "0" * 64},
            "built for the package 000000000000 with the same ONNX file",
        ),
    ],
)
def test_inspect_says_what_is_stale(
    package: Path, folder: Path, changes: dict[str, Any], words: str
) -> None:
    write(package, folder, **changes)
    entry = look(package, folder)
    assert not entry["fits"] and words in entry["differences"][0]
    assert f"stale: {entry['differences'][0]}" in inspect(package, folder)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (StoredFile(5, "0" * 64), "truncated or altered: 4 bytes, not 5"),
        (StoredFile(4, "0" * 64), "its SHA-256 is not the one in unet.json"),
    ],
)
def test_inspect_says_what_is_altered(
    package: Path, folder: Path, stored: StoredFile, words: str
) -> None:
    write(package, folder, files={"unet.plan": stored})
    entry = look(package, folder)
    assert entry["state"] == ALTERED and not entry["fits"]
    (difference,) = entry["differences"]
    assert words in difference
    text = inspect(package, folder)
    assert f"altered: {difference}" in text and "fresh" not in text


def test_inspect_of_an_engine_of_an_older_sdexport(package: Path, folder: Path) -> None:
    path = sidecar_path(folder / RTX / "unet.plan")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    assert look(package, folder)["state"] == STALE
    assert "stale: " in inspect(package, folder)


def test_inspect_of_linked_engines(package_copy: Path, folder: Path) -> None:
    (package_copy / "engines").symlink_to(folder, target_is_directory=True)
    (entry,) = built_engines(Package.load(package_copy))
    assert entry["state"] == ALTERED and "is a link; pass its target" in entry["differences"][0]


def test_inspect_of_engines_without_sidecar_or_component(package: Path, folder: Path) -> None:
    sidecar_path(folder / RTX / "unet.plan").unlink()
    assert look(package, folder)["differences"] == [
        "there is no unet.json: the build did not finish"
    ]
    assert "of an unknown version" in inspect(package, folder)
    write(package, folder)
    for suffix in (".plan", ".json"):
        (folder / RTX / f"unet{suffix}").rename(folder / RTX / f"text_encoder_2{suffix}")
    assert "'unet.plan' is not the name of a file of" in look(package, folder)["differences"][0]
    write_plan(package / "unet" / "model.onnx", folder / RTX / "text_encoder_2.plan", RTX)
    assert look(package, folder)["differences"] == ["the package has no text_encoder_2"]


def test_inspect_of_a_refittable_engine_of_another_package(package: Path, folder: Path) -> None:
    write(package, folder, onnx_sha256="0" * 64, options={"refittable": True})
    assert look(package, folder)["refits"]
    assert "takes this package's weights when it is opened" in inspect(package, folder)
    write(package, folder, package_sha256="0" * 64, options={"refittable": True})
    assert look(package, folder)["state"] == FRESH
    assert "  it was built for the package 000000000000" in inspect(package, folder)


def test_inspect_says_what_it_cannot_compare(
    package: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(package, folder, library_version="1.0", target={"compute_capabilities": "12.0"})
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(cuda_device, "runtime", _no_cuda)
    entry = look(package, folder)
    assert entry["fits"]
    assert entry["not_compared"] == ["TensorRT-RTX is not installed", "no NVIDIA GPU"]
    assert "fresh (not compared: TensorRT-RTX is not installed" in inspect(package, folder)


def _no_cuda() -> Any:
    raise MissingDependencyError("cuda-bindings is not installed")


def test_inspect_finds_engines_in_the_package_itself(package_copy: Path, folder: Path) -> None:
    assert built_engines(Package.load(package_copy)) == []
    shutil.copytree(folder / RTX, package_copy / "engines" / RTX)
    result = CliRunner().invoke(main, ["inspect", str(package_copy)])
    assert "engine unet: tensorrt-rtx" in result.stdout


def test_inspect_of_no_folder(package: Path, tmp_path: Path) -> None:
    command = ["inspect", str(package), "--engine-dir", str(tmp_path / "none")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1 and "error: no folder of engines at" in result.stderr
