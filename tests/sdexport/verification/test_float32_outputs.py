"""Outputs in float32 of graphs of a lower precision: recorded at export, compared by verify."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sdexport import Package
from sdexport.verification.float32_outputs import DIFFERENCE, SCALE
from sdexport.verification.verification_result import Verification
from sdexport.verification.verifier import verify_package
from tests.helpers.changed_package import accept_files

Arrays = dict[str, np.ndarray]
KINDS = {"relative_l2", "max_abs", "float32_relative_l2", "float32_max_abs"}


@pytest.fixture
def half_copy(half_package: Path, tmp_path: Path) -> Path:
    return shutil.copytree(half_package, tmp_path / "half")


def change(folder: Path, component: str, function: Callable[[Arrays], object]) -> Verification:
    """Change the reference outputs of a component, and verify it."""
    path = folder / "reference" / f"{component}.npz"
    with np.load(path) as data:
        arrays = dict(data)
    function(arrays)
    np.savez(path, allow_pickle=False, **arrays)
    accept_files(folder)
    return verify_package(Package.load(folder), hashes=False, only=component)


def test_float32_outputs_are_compared_in_lower_precisions_only(
    half_package: Path, package: Path
) -> None:
    (half,) = verify_package(Package.load(half_package), hashes=False, only="vae_encoder")
    assert half.passed and {measure.kind for measure in half.measures} == KINDS
    (single,) = verify_package(Package.load(package), hashes=False, only="vae_encoder")
    assert single.passed and {m.kind for m in single.measures} == {"relative_l2", "max_abs"}


def test_float32_outputs_of_a_float32_package_in_bf16_arithmetic(package: Path) -> None:
    """Compared with PyTorch: in bfloat16 a damaged layer would hide among the rounding errors."""
    pytest.importorskip("openvino")
    check, *_ = verify_package(
        Package.load(package), "openvino", hashes=False, only="vae_encoder", precision="bf16"
    )
    assert check.passed and {measure.kind for measure in check.measures} == KINDS
    by_kind = {measure.kind: measure.value or 0 for measure in check.measures}
    assert by_kind["relative_l2"] > 100 * by_kind["float32_relative_l2"]


def test_other_float32_outputs_fail(half_copy: Path) -> None:
    def alter(arrays: Arrays) -> None:
        name = f"{SCALE}latent_parameters"
        arrays[name] = arrays[name] + np.float32(1e-3)

    (check,) = change(half_copy, "vae_encoder", alter)
    assert not check.passed and "in float32" in check.verdict and "max abs" in check.verdict


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "its float32 outputs are incomplete"),
        (np.zeros(3, np.float32), "its float32 outputs are incomplete"),
        (np.float64(1), "its float32 outputs are of another type"),
        (np.array("x"), "its float32 outputs are of another type"),
        (np.float32("nan"), "NaN"),
    ],
)
def test_damaged_float32_outputs_are_named(
    half_copy: Path, value: np.ndarray | None, words: str
) -> None:
    def alter(arrays: Arrays) -> None:
        del arrays[f"{SCALE}latent_parameters"]
        if value is not None:
            arrays[f"{SCALE}latent_parameters"] = np.asarray(value)

    (check,) = change(half_copy, "vae_encoder", alter)
    assert not check.passed
    assert words in check.verdict or (words == "NaN" and check.share == float("inf"))


def test_missing_float32_outputs_are_named_in_a_warning(
    half_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def remove(arrays: Arrays) -> None:
        for name in [n for n in arrays if n.startswith((DIFFERENCE, SCALE))]:
            del arrays[name]

    with caplog.at_level(logging.WARNING, "sdexport"):
        found = change(half_copy, "vae_encoder", remove)
    (check,) = found
    assert check.passed and {measure.kind for measure in check.measures} == KINDS - {
        "float32_relative_l2",
        "float32_max_abs",
    }
    assert "vae_encoder: not compared in float32, which shows small damage" in caplog.text
    (line,) = found.not_checked
    assert line.startswith("vae_encoder in float32: ")
