"""Graphs of a denoiser whose files and manifest agree, but that take no such adapters."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from sdexport import ControlNet, Package, PackageError, load_pipeline
from sdexport.engines import TensorSpec
from sdexport.runtime.adapters.declared_inputs import check_adapter_inputs
from tests.helpers.changed_package import accept_files
from tests.helpers.control_nets import control_image

Change = Callable[[TensorSpec], Sequence[TensorSpec]]
CHANGES: dict[str, Change] = {
    "renamed": lambda spec: [replace(spec, name=f"{spec.name}_x")],
    "without": lambda spec: [],
    "no shape": lambda spec: [replace(spec, shape=())],
    "one dimension": lambda spec: [replace(spec, shape=("batch",))],
    "named sizes": lambda spec: [replace(spec, shape=("odd",) * len(spec.shape))],
    "fixed sizes": lambda spec: [replace(spec, shape=(7,) * len(spec.shape))],
    "integers": lambda spec: [replace(spec, dtype="int64")],
    "halves": lambda spec: [replace(spec, dtype="float16")],
    "another": lambda spec: [spec, replace(spec, name="another")],
}
MAY_BE_LEFT_OUT = ("mid_block", "down_block", "down_intrablock", "ip_adapter.weights")
"""How the names of inputs begin without which those that are left are inputs of adapters."""


def graphs(*packages: Path) -> list[tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    """The inputs of each graph for adapters of these packages' UNets, and those of model.onnx."""
    found = []
    for folder in packages:
        package = Package.load(folder)
        names = [name for name in package.graphs if name.startswith("unet.")]
        found += [(package.graph_inputs(name), package.graph_inputs("unet")) for name in names]
    return found


def test_graphs_of_packages_pass(lora_package: Path, image_adapters: Path) -> None:
    checked = graphs(lora_package, image_adapters / "package")
    assert len(checked) >= 6
    for specs, base in checked:
        check_adapter_inputs(specs, base)


@pytest.mark.parametrize("change", CHANGES)
def test_odd_inputs(change: str, lora_package: Path, image_adapters: Path) -> None:
    """One input of each kind that the graphs take, changed."""
    for specs, base in graphs(lora_package, image_adapters / "package"):
        kinds = {spec.name.partition(".")[0].rstrip("0123456789"): spec for spec in specs}
        kinds |= {spec.name.rpartition(".")[2]: spec for spec in specs}
        for spec in kinds.values():
            if change == "without" and spec.name.startswith(MAY_BE_LEFT_OUT):
                continue
            place = specs.index(spec)
            odd = [*specs[:place], *CHANGES[change](spec), *specs[place + 1 :]]
            if set(odd) == set(specs):
                continue  # it has such sizes
            with pytest.raises(ValueError, match=r"its inputs? "):
                check_adapter_inputs(odd, base)


def test_a_graph_is_checked_when_it_is_opened(
    lora_package: Path, control_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(lora_package, tmp_path / "odd"))
    path = folder / "unet" / "controlnet.onnx"
    model = onnx.load(path, load_external_data=False)
    another = model.graph.input.add()
    another.CopyFrom(model.graph.input[0])
    another.name = "another"
    path.write_bytes(model.SerializeToString())
    accept_files(folder, "unet/controlnet.onnx")
    nets = [ControlNet(control_folder / "first", control_image(64, 64))]
    message = r"controlnet\.onnx is damaged: its input another is .*, of no adapter"
    with load_pipeline(folder) as pipe, pytest.raises(PackageError, match=message):
        pipe("a", seed=1, num_inference_steps=1, height=64, width=64, controlnets=nets)
