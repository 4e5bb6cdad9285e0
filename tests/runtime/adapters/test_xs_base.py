"""Whether a ControlNet-XS holds the UNet of a model: small changes, merged LoRAs, and damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdexport import InvalidArgumentError, PackageError
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines.array_files import read_arrays
from sdexport.runtime.adapters import xs_base
from sdexport.runtime.adapters.xs_base import LARGEST_DIFFERENCE, SAME, check_base
from sdexport.runtime.packages.package import Package
from tests.helpers.changed_package import accept_files

OUTPUT = "output.out_sample"
Arrays = dict[str, np.ndarray]
ROUNDED = (SAME * LARGEST_DIFFERENCE) ** 0.5
"""A difference between both limits."""


@pytest.fixture(scope="module")
def model(xs_folder: Path) -> Package:
    return Package.load(xs_folder / "package")


@pytest.fixture(scope="module")
def adapter(xs_folder: Path) -> Package:
    return Package.load(xs_folder / "xs")


def changed(package: Package, folder: Path, change: Callable[[Arrays], object]) -> Package:
    """A copy of a package with other reference outputs of its UNet."""
    shutil.copytree(package.folder, folder)
    path = folder / "reference" / "unet.npz"
    with np.load(path) as data:
        arrays = dict(data)
    change(arrays)
    np.savez(path, **arrays)
    accept_files(folder, "reference/unet.npz")
    return Package.load(folder, verify=False)


def scaled(by: float) -> Callable[[Arrays], object]:
    def change(arrays: Arrays) -> None:
        arrays[OUTPUT] = (arrays[OUTPUT] * (1 + by)).astype(np.float32)

    return change


def from_source(package: Package, **source: str) -> Package:
    """The package with further entries about its source; double underscores stand for dots."""
    entries = {key.replace("__", "."): value for key, value in source.items()}
    manifest = replace(package.manifest, source={**package.manifest.source, **entries})
    return replace(package, manifest=manifest)


LORA = {"lora__1__sha256": "ab" * 32, "lora__1__scale": "0.1"}


@pytest.mark.parametrize("by", [0, SAME / 4])
@pytest.mark.parametrize("source", [{}, LORA, {"sha256": "cd" * 32}], ids=str)
def test_the_same_unet(
    by: float,
    source: dict[str, str],
    model: Package,
    adapter: Package,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also with LoRAs that change the text encoder alone, and of a checkpoint of other files."""
    package = changed(model, tmp_path / "package", scaled(by))
    check_base(from_source(package, **source), adapter, "it does not fit")
    assert not caplog.records


def test_a_small_difference_is_named(
    model: Package, adapter: Package, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = changed(model, tmp_path / "package", scaled(ROUNDED))
    check_base(package, adapter, "it does not fit")
    assert "xs may not fit" in caplog.text
    assert f"by {ROUNDED:.2g} of their size" in caplog.text
    caplog.clear()
    with pytest.raises(InvalidArgumentError, match=r"^it does not fit: .*LoRAs are merged into"):
        check_base(from_source(package, **LORA), adapter, "it does not fit")
    assert not caplog.records


def test_another_unet(model: Package, adapter: Package, tmp_path: Path) -> None:
    package = changed(model, tmp_path / "package", scaled(4 * LARGEST_DIFFERENCE))
    with pytest.raises(InvalidArgumentError, match=r"another model .* 0\.004 of .* --base, the"):
        check_base(package, adapter, "it does not fit")
    with pytest.raises(InvalidArgumentError, match="and --base-ema"):
        check_base(from_source(package, weights="ema"), adapter, "it does not fit")


def outputs_with(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """What the UNet gives for the recorded inputs with changed weights."""
    unet = Checkpoint.open(folder / "checkpoint").load("unet")
    for weight in unet.parameters():
        weight.data = change(weight.data)
    with np.load(folder / "package" / "reference" / "unet.npz") as data, torch.inference_mode():
        names = ("sample", "timestep", "encoder_hidden_states")
        inputs = [torch.from_numpy(data[f"input.{name}"]) for name in names]
        found: np.ndarray = unet(*inputs).sample.numpy()
    return found


def low_rank(share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A change of rank 8 of each matrix, of a share of its norm."""
    generator = torch.Generator().manual_seed(0)

    def change(weight: torch.Tensor) -> torch.Tensor:
        if weight.ndim != 2:
            return weight
        rows, columns = weight.shape
        up, down = (torch.randn(shape, generator=generator) for shape in ((rows, 8), (8, columns)))
        delta = up @ down
        return weight + delta * (share * weight.norm() / delta.norm())

    return change


def test_weights_in_float16_and_loras(
    xs_folder: Path,
    model: Package,
    adapter: Package,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the limits are for."""

    def package(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Package:
        output = {OUTPUT: outputs_with(xs_folder, change)}
        return changed(model, tmp_path / name, lambda arrays: arrays.update(output))

    check_base(package("half", lambda weight: weight.half().float()), adapter, "it does not fit")
    assert "may not fit" in caplog.text
    with pytest.raises(InvalidArgumentError, match="another model"):
        check_base(package("lora", low_rank(0.05)), adapter, "it does not fit")


def without_output(arrays: Arrays) -> None:
    del arrays[OUTPUT]


def with_nan(arrays: Arrays) -> None:
    arrays[OUTPUT][0, 0, 0, 0] = np.nan


def cut(arrays: Arrays) -> None:
    arrays[OUTPUT] = arrays[OUTPUT][:1]


def in_float64(arrays: Arrays) -> None:
    arrays[OUTPUT] = arrays[OUTPUT] * np.float64(1e300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_output, r"no 'output\.out_sample'"),
        (with_nan, "holds NaN"),
        (cut, r"is float32 \(1, "),
        (in_float64, "is float64"),
    ],
)
@pytest.mark.parametrize("which", ["model", "adapter"])
def test_the_damaged_package_is_named(
    which: str,
    change: Callable[[Arrays], None],
    message: str,
    model: Package,
    adapter: Package,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = {"model": model, "adapter": adapter}

    def read(path: Path, **options: Any) -> Arrays:
        arrays = {name: value.copy() for name, value in read_arrays(path, **options).items()}
        if path.is_relative_to(both[which].folder):
            change(arrays)
        return arrays

    monkeypatch.setattr(xs_base, "read_arrays", read)
    expected = rf"{both[which].folder.name}: reference/unet\.npz is damaged: .*{message}"
    with pytest.raises(PackageError, match=expected):
        check_base(model, adapter, "it does not fit")
