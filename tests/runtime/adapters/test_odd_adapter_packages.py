"""Packages of adapters whose files and manifest agree, but describe no such adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import (
    ControlNet,
    InvalidArgumentError,
    IPAdapter,
    Package,
    PackageError,
    Pipeline,
    T2IAdapter,
    load_pipeline,
)
from sdexport.engines import TensorSpec
from sdexport.engines.errors import EngineError
from sdexport.runtime.adapters.t2i_features import summed
from sdexport.runtime.adapters.t2i_inputs import residual_name, residual_shape
from tests.helpers.changed_package import accept_files
from tests.helpers.control_nets import control_image

CALL: dict[str, Any] = {"num_inference_steps": 1, "seed": 3, "height": 64, "width": 64}
IMAGE = control_image(64, 64)
Change = Callable[[TensorSpec], list[TensorSpec]]


def shape(*sizes: int | str) -> Change:
    return lambda spec: [replace(spec, shape=sizes)]


def sized(axis: int, size: int) -> Change:
    return lambda spec: [replace(spec, shape=(*spec.shape[:axis], size, *spec.shape[axis + 1 :]))]


def renamed(spec: TensorSpec) -> list[TensorSpec]:
    return [replace(spec, name=f"{spec.name}_x")]


def another(spec: TensorSpec) -> list[TensorSpec]:
    return [spec, replace(spec, name="another")]


def changed(package: Package, component: str, name: str, change: Change) -> Package:
    """The package with another input or output."""
    components = dict(package.manifest.components)
    record = components[component]
    inputs, outputs = (
        tuple(new for spec in specs for new in (change(spec) if spec.name == name else [spec]))
        for specs in (record.inputs, record.outputs)
    )
    assert (inputs, outputs) != (tuple(record.inputs), tuple(record.outputs))
    components[component] = replace(record, inputs=inputs, outputs=outputs)
    return replace(package, manifest=replace(package.manifest, components=components))


@pytest.fixture(scope="module")
def pipe(image_adapters: Path) -> Iterator[Pipeline]:
    with load_pipeline(image_adapters / "package") as opened:
        yield opened


@pytest.mark.parametrize("factor", [0, -8, "x", None, True, [8], 8.5, 10**9], ids=str)
def test_downscale_factors_that_are_none(
    pipe: Pipeline, image_adapters: Path, tmp_path: Path, factor: object
) -> None:
    folder = shutil.copytree(image_adapters / "t2i", tmp_path / "t2i")
    path = folder / "t2i_adapter" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"downscale_factor": factor}))
    accept_files(folder, "t2i_adapter/config.json")
    with pytest.raises(PackageError, match=r"config\.json is damaged: downscale_factor must be"):
        pipe("a", t2i_adapters=[T2IAdapter(folder, IMAGE)], **CALL)


@pytest.mark.parametrize(
    ("component", "name", "change"),
    [
        ("t2i_adapter", residual_name(0), shape()),
        ("t2i_adapter", residual_name(0), shape("batch", "x", "height_2", "width_2")),
        ("t2i_adapter", residual_name(1), renamed),
        ("t2i_adapter", "image", shape("batch")),
        ("t2i_adapter", "image", shape("batch", 4, "height", "width")),
        ("t2i_adapter", "image", another),
    ],
)
def test_t2i_adapters(
    pipe: Pipeline, image_adapters: Path, component: str, name: str, change: Change
) -> None:
    package = changed(Package.load(image_adapters / "t2i"), component, name, change)
    with pytest.raises(PackageError, match="t2i is damaged: "):
        pipe("a", t2i_adapters=[T2IAdapter(package, IMAGE)], **CALL)


@pytest.mark.parametrize(
    ("component", "name", "change"),
    [
        ("image_projection", "key_1", renamed),
        ("image_projection", "value_0", shape("batch", 4, 31)),
        ("image_projection", "value_0", shape("batch", 5, 32)),
        ("image_projection", "key_0", shape()),
        ("image_projection", "key_0", another),
        ("image_projection", "image_tokens", renamed),
        ("image_projection", "image_tokens", shape(32)),
        ("image_encoder", "pixel_values", shape("batch", 3, "height", "width")),
        ("image_encoder", "pixel_values", shape("batch", 3, 28, 10**9)),
        ("image_encoder", "pixel_values", shape()),
        ("image_encoder", "pixel_values", renamed),
    ],
)
def test_ip_adapters(
    pipe: Pipeline, image_adapters: Path, component: str, name: str, change: Change
) -> None:
    package = changed(Package.load(image_adapters / "base"), component, name, change)
    with pytest.raises(PackageError, match="base is damaged: "):
        pipe("a", ip_adapters=[IPAdapter(package, IMAGE)], **CALL)


@pytest.mark.parametrize(
    ("component", "name", "change"),
    [
        ("controlnet", "mid_block_additional_residual", shape()),
        ("controlnet", "mid_block_additional_residual", shape("batch", "x", "height", "width")),
        ("controlnet", "sample", shape("batch")),
        ("controlnet", "encoder_hidden_states", shape()),
        ("controlnet", "control_embedding", renamed),
        ("controlnet", "control_embedding", shape("batch", 17, "height", "width")),
        ("control_embedding", "control_embedding", another),
        ("control_embedding", "controlnet_cond", shape("batch")),
        ("control_embedding", "controlnet_cond", another),
    ],
)
def test_controlnets(
    lora_package: Path, control_folder: Path, component: str, name: str, change: Change
) -> None:
    package = changed(Package.load(control_folder / "first"), component, name, change)
    with (
        load_pipeline(lora_package) as pipe,
        pytest.raises(PackageError, match="first is damaged: "),
    ):
        pipe("a", controlnets=[ControlNet(package, IMAGE)], **CALL)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mid_block_additional_residual", sized(1, 128), "128 channels"),
        ("sample", sized(1, 9), "its sample has 9 channels, that of the model 4"),
        ("encoder_hidden_states", sized(2, 64), "its encoder_hidden_states has 64 channels"),
    ],
)
def test_controlnets_of_other_models(
    lora_package: Path, control_folder: Path, name: str, change: Change, message: str
) -> None:
    package = changed(Package.load(control_folder / "first"), "controlnet", name, change)
    with (
        load_pipeline(lora_package) as pipe,
        pytest.raises(InvalidArgumentError, match=f"{message}.*a model of another family"),
    ):
        pipe("a", controlnets=[ControlNet(package, IMAGE)], **CALL)


def test_t2i_adapters_of_other_models(pipe: Pipeline, image_adapters: Path) -> None:
    package = Package.load(image_adapters / "t2i")
    other = changed(package, "t2i_adapter", residual_name(0), sized(1, 9))
    with pytest.raises(InvalidArgumentError, match=r"t2i is for another model.*9 channels"):
        pipe("a", t2i_adapters=[T2IAdapter(other, IMAGE)], **CALL)


@pytest.mark.parametrize("names", [("key_0", "value_0"), ("image_tokens",)], ids=str)
def test_ip_adapters_of_other_models(
    pipe: Pipeline, image_adapters: Path, names: tuple[str, ...]
) -> None:
    package = Package.load(image_adapters / "base")
    for name in names:
        package = changed(package, "image_projection", name, sized(2, 640))
    with pytest.raises(InvalidArgumentError, match=r"base is for another model.* 640"):
        pipe("a", ip_adapters=[IPAdapter(package, IMAGE)], **CALL)


@pytest.mark.parametrize(
    ("component", "name", "change"),
    [
        ("controlnet", "control_type", shape("batch", "types")),
        ("controlnet", "control_type", shape("batch", 0)),
        ("controlnet", "control_type", shape(6)),
        ("controlnet", "control_type", shape("batch", 7)),
        ("controlnet", "control_type", renamed),
        ("controlnet", "control_type", lambda spec: [replace(spec, dtype="int64")]),
        ("control_embedding", "control_type", renamed),
        ("control_embedding", "control_type", shape(1, 10**9)),
        ("control_embedding", "conditioning_scale", renamed),
        ("control_embedding", "conditioning_scale", another),
    ],
)
def test_controlnet_unions(
    lora_package: Path, union_net: Path, component: str, name: str, change: Change
) -> None:
    package = changed(Package.load(union_net), component, name, change)
    with (
        load_pipeline(lora_package) as pipe,
        pytest.raises(PackageError, match="union is damaged: "),
    ):
        pipe("a", controlnets=[ControlNet(package, IMAGE, mode=0)], **CALL)


def test_features_of_another_size() -> None:
    spec = TensorSpec(residual_name(0), "float32", residual_shape(2, 0))
    feature = {spec.name: np.ones((1, 2, 3, 4), np.float32)}
    assert summed([(feature, 2.0)], [spec], 2, [(2, 3, 4)])[spec.name].max() == 2
    with pytest.raises(EngineError, match=r"has the shape \(2, 3, 4\), expected \(2, 4, 4\)"):
        summed([(feature, 2.0)], [spec], 2, [(2, 4, 4)])
