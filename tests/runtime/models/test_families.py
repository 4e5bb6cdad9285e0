"""Model families: detection, and that a new one needs no change anywhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sdexport import PackageError, load_pipeline
from sdexport.engines import TensorSpec
from sdexport.runtime.models.components import Role
from sdexport.runtime.models.conditioning import ConditioningInput, ConditioningRequest
from sdexport.runtime.models.families import FAMILIES, components, family_named, family_of
from sdexport.runtime.models.stable_diffusion import STABLE_DIFFUSION
from tests.helpers.changed_package import accept_files, edit_manifest, remove_notes

ENCODERS = {
    "stable-diffusion": ["text_encoder"],
    "stable-diffusion-xl": ["text_encoder", "text_encoder_2"],
    "stable-diffusion-xl-refiner": ["text_encoder_2"],
}


def brightness(request: ConditioningRequest, spec: TensorSpec) -> np.ndarray:
    """One number for each row: how wide the image is, relative to its height."""
    height, width = request.sizes.target_size
    return np.full((request.rows, 1), width / height, np.float32)


MADE_UP = replace(
    STABLE_DIFFUSION,
    name="made-up",
    conditioning=(ConditioningInput("aspect", lambda configs: ("batch", 1), brightness),),
)


def add_input(package: Path) -> None:
    """Give the UNet of a package one more input, whose sum is added to every output."""
    path = package / "unet" / "model.onnx"
    model = onnx.load(path)
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("aspect", TensorProto.FLOAT, ["batch", 1]))
    last = next(node for node in graph.node if "out_sample" in node.output)
    last.output[list(last.output).index("out_sample")] = "plain"
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [-1, 1, 1, 1])
    graph.initializer.append(shape)
    graph.node.append(helper.make_node("Reshape", ["aspect", "shape"], ["shaped"]))
    graph.node.append(helper.make_node("Add", ["plain", "shaped"], ["out_sample"]))
    onnx.save(model, path)
    remove_notes(package)
    accept_files(package)

    def describe(manifest: dict[str, Any]) -> None:
        manifest["family"] = "made-up"
        entry = {"name": "aspect", "dtype": "float32", "shape": ["batch", 1]}
        manifest["components"]["unet"]["inputs"].append(entry)

    edit_manifest(package, describe)


def test_made_up_family_generates_with_one_more_input(
    package_copy: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_input(package_copy)
    with pytest.raises(PackageError, match="'made-up' is unknown to this sdexport"):
        load_pipeline(package_copy)
    monkeypatch.setitem(FAMILIES, MADE_UP.name, MADE_UP)
    fed: list[np.ndarray] = []
    size = {"height": 64, "width": 96, "num_inference_steps": 2, "seed": 0}
    with load_pipeline(package_copy) as changed, load_pipeline(package) as plain:
        unet = changed.session("unet")
        run = unet.run

        def watched(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            fed.append(feeds["aspect"])
            return run(feeds)

        monkeypatch.setattr(unet, "run", watched)
        image = np.asarray(changed("a red circle", **size).images[0])
        other = np.asarray(plain("a red circle", **size).images[0])
    assert [value.tolist() for value in fed] == [[[1.5], [1.5]]] * 2
    assert image.shape == other.shape and (image != other).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_recognised_from_configurations(name: str) -> None:
    base = name.replace("latent-consistency", "stable-diffusion").removesuffix("-inpainting")
    unet = {
        "in_channels": 9 if name.endswith("inpainting") else 4,
        "time_cond_proj_dim": 32 if "consistency" in name else None,
    }
    family = family_of(unet, ENCODERS[base], 4)
    assert family is family_named(name)
    assert [spec.name for spec in family.text_encoders] == ENCODERS[base]


def test_unknown_text_encoders_are_rejected() -> None:
    with pytest.raises(PackageError, match="no model family has the text encoders -"):
        family_of({}, ["unet"], 4)


def test_components_are_in_the_order_of_a_pipeline() -> None:
    roles = [spec.role for spec in components().values()]
    assert roles == sorted(roles, key=list(Role).index)
    assert list(components())[:2] == ["text_encoder", "text_encoder_2"]


def test_expectations_name_what_does_not_fit() -> None:
    configs = {
        "unet": SimpleNamespace(
            in_channels=4,
            cross_attention_dim=32,
            class_embed_type=None,
            num_class_embeds=None,
            addition_embed_type=None,
        ),
        "text_encoder": SimpleNamespace(hidden_size=32),
        "vae": SimpleNamespace(latent_channels=4),
    }
    assert STABLE_DIFFUSION.unmet_expectations(configs) == []
    configs["text_encoder"].hidden_size = 64
    configs["vae"].shift_factor = 0.5
    unmet = STABLE_DIFFUSION.unmet_expectations(configs)
    assert unmet == [
        "unet.cross_attention_dim to be text_encoder.hidden_size",
        "a vae without shift_factor",
    ]
