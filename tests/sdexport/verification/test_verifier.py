"""Verification finds every change to a package, and names the component."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import InvalidArgumentError, MissingDependencyError, Package, PackageError
from sdexport.runtime import component_sessions
from sdexport.verification.comparison import compare
from sdexport.verification.report import Check, Measure
from sdexport.verification.text_report import table
from sdexport.verification.verifier import verify, verify_package
from tests.helpers.altered_models import alter_weight
from tests.helpers.changed_package import accept_files, as_optimum_folder, edit_manifest
from tests.tolerances import FLOAT64_REL


def failed(checks: Sequence[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_verify_passes_an_untouched_package(package: Path) -> None:
    checks = verify(package)
    assert failed(checks) == set()
    measured = {(c.name, c.output) for c in checks if c.output != "files"}
    assert measured == {
        ("text_encoder", "last_hidden_state"),
        ("text_encoder", "pooler_output"),
        ("text_encoder", "clip_skip.1"),
        ("text_encoder.token_embedding", "inputs_embeds"),
        ("text_encoder.inputs_embeds", "last_hidden_state"),
        ("text_encoder.inputs_embeds", "pooler_output"),
        ("text_encoder.attention_mask", "last_hidden_state"),
        ("text_encoder.attention_mask", "pooler_output"),
        ("unet", "out_sample"),
        ("vae_decoder", "sample"),
        ("vae_encoder", "latent_parameters"),
        ("image", "pixels"),
    }
    assert all(0 <= (c.share or 0) <= 1 for c in checks)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_verify_finds_altered_weights(package_copy: Path, component: str) -> None:
    """Even with matching hashes: one weight tensor is scaled by 1.1."""
    alter_weight(package_copy / component / "model.onnx", 1.1)
    accept_files(package_copy)
    assert component in failed(verify(package_copy))
    assert failed(verify(package_copy)) <= {component, "image"}


@pytest.mark.parametrize("graph", ["token_embedding", "inputs_embeds", "attention_mask"])
def test_verify_finds_altered_weights_of_further_graphs(package_copy: Path, graph: str) -> None:
    alter_weight(package_copy / "text_encoder" / f"{graph}.onnx", 1.1)
    accept_files(package_copy)
    assert failed(verify(package_copy)) == {f"text_encoder.{graph}"}


def test_verify_finds_altered_bytes(package_copy: Path) -> None:
    path = package_copy / "unet" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[-5000] ^= 64
    path.write_bytes(data)
    checks = verify(package_copy)
    assert "unet" in failed(checks)
    assert "altered: unet/model.onnx" in table(checks).splitlines()[1]


def test_verify_finds_an_altered_scheduler(package_copy: Path) -> None:
    path = package_copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.012", "0.013"))
    accept_files(package_copy)
    assert failed(verify(package_copy)) == {"image"}


@pytest.mark.parametrize(("name", "row"), [("unet", "unet"), ("image", "image")])
def test_verify_names_damaged_references(package_copy: Path, name: str, row: str) -> None:
    path = package_copy / "reference" / f"{name}.npz"
    path.write_bytes(path.read_bytes()[:300])
    accept_files(package_copy)
    checks = verify(package_copy)
    assert failed(checks) == {row}
    assert f"reference/{name}.npz is damaged" in table(checks)


def test_verify_needs_references(package_copy: Path) -> None:
    def forget(data: dict[str, Any]) -> None:
        data["files"] = [r for r in data["files"] if not r["path"].startswith("reference/")]

    edit_manifest(package_copy, forget)
    for path in (package_copy / "reference").iterdir():
        path.unlink()
    with pytest.raises(PackageError, match=r"nothing was verified: .* no reference outputs"):
        verify(package_copy)


def test_verify_says_that_nothing_of_an_optimum_folder_was_verified(
    package: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(package, tmp_path / "optimum")
    as_optimum_folder(folder)
    with pytest.raises(PackageError, match=r"nothing was verified: .* --against SOURCE"):
        verify(folder)


def _reference(folder: Path, name: str, **changes: np.ndarray) -> None:
    """Change arrays of a reference; "." in a name is written as two underscores."""
    path = folder / "reference" / f"{name}.npz"
    with np.load(path) as data:
        arrays = dict(data)
    np.savez(path, **arrays | {key.replace("__", "."): value for key, value in changes.items()})
    accept_files(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("unet", {"output__out_sample": np.array("x")}, "it holds no numbers"),
        ("unet", {"input__sample": np.zeros((0, 4, 10, 13), np.float32)}, "empty array"),
        ("unet", {"input__sample": np.zeros((2, 3, 10, 13), np.float32)}, "expected float32"),
        ("unet", {"input__sample": np.zeros((2, 4), np.float32)}, "expected float32"),
        ("unet", {"input__more": np.zeros(1, np.float32)}, "no input 'more'"),
        ("image", {"generated": np.zeros((1, 8, 8), np.uint8)}, "is no image"),
        ("image", {"generated": np.zeros((1, 64, 64, 3), np.float32)}, "is no image"),
    ],
    ids=range(7),
)
def test_verify_names_wrong_references(
    package_copy: Path, name: str, change: dict[str, np.ndarray], message: str
) -> None:
    _reference(package_copy, name, **change)
    only = None if name == "image" else name
    found = verify_package(Package.load(package_copy, verify=False), hashes=False, only=only)
    assert failed(found) == {name}
    assert message in table(found) and found.html()


@pytest.mark.parametrize("tile", [3, 65, "64", 0])
def test_verify_checks_the_tile_before_the_work(package: Path, tile: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="vae_tile"):
        verify(package, vae_tile=tile)


def test_verify_fails_without_the_backend(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing backend is an error of its own, and not a package that fails its checks."""

    def not_installed(*_: object, **__: object) -> None:
        raise MissingDependencyError("OpenVINO is not installed")

    monkeypatch.setattr(component_sessions, "open_component", not_installed)
    with pytest.raises(MissingDependencyError, match="OpenVINO is not installed"):
        verify(package)


def test_compare_by_hand() -> None:
    errors = compare(np.array([3.0, -4.0]), np.array([3.0, -3.0]))
    assert errors == (pytest.approx(0.2, rel=FLOAT64_REL), pytest.approx(0.25, rel=FLOAT64_REL))
    assert compare(np.zeros(3), np.zeros(3)) == (0.0, 0.0)
    assert compare(np.zeros(3), np.ones(3)) == (pytest.approx(3**0.5, rel=FLOAT64_REL), 1.0)
    assert compare(np.ones(2), np.array([1.0, np.nan])) is None
    assert compare(np.array([1.0, np.inf]), np.ones(2)) is None


def test_check_of_nothing_does_not_pass() -> None:
    assert not Check("unet", "-").passed
    for value in (None, float("nan"), float("inf")):
        one = Measure("max_abs", value, 1e-3)
        assert not Check("unet", "x", (Measure("relative_l2", 0.0, 1e-3), one)).passed
    good = Measure("max_abs", 1e-3, 1e-3)
    assert Check("unet", "x", (good,)).passed
    assert not Check("unet", "x", (good,), "NaN or infinity").passed
