"""Every spelling of a layer's name that trainers use is found, and so is every storage type."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport.checkpoints.lora import Lora
from sdexport.engines.errors import CheckpointError
from sdexport.runtime.adapters.lora_names import read_names
from tests.helpers.file_kinds import file_kind
from tests.helpers.lora_files import random_lora, save_kohya
from tests.helpers.original_layout import SMALL, random_modules, unet_layout
from tests.tolerances import LORA_WEIGHT_ABS

SD1, SD2, SDXL, REFINER = SMALL
FEW = ("attn1.to_q", "attn2.to_k", "q_proj")
PLAIN = ("lora_A.weight", "lora_B.weight")
KOHYA = ("lora_down.weight", "lora_up.weight", "alpha")


def parts_of(family: Any) -> dict[str, Any]:
    return {k: v for k, v in random_modules(family).items() if k != "vae"}


def layers_of(family: Any) -> dict[str, list[str]]:
    """The layers that have a weight, by component."""
    return {
        part: [n.removesuffix(".weight") for n, _ in m.named_parameters() if n.endswith(".weight")]
        for part, m in parts_of(family).items()
    }


def flat(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def text(spell: Callable[[str], str]) -> Callable[[str], str]:
    """With "text_model." before the name, as transformers had it before its version 5."""
    return lambda name: spell(f"text_model.{name.removeprefix('text_model.')}")


@pytest.mark.parametrize(
    ("part", "spell", "roles"),
    [
        ("unet", flat("lora_unet_"), KOHYA),
        ("unet", flat("lycoris_"), KOHYA),
        ("unet", flat("oft_unet_"), ("oft_blocks", "alpha")),
        ("unet", dotted("unet."), PLAIN),
        ("unet", dotted("unet."), KOHYA),
        ("unet", dotted("unet."), ("lora_A.default.weight", "lora_B.default.weight")),
        ("unet", dotted("unet."), ("lora.down.weight", "lora.up.weight", "lora.alpha")),
        ("unet", dotted("base_model.model."), PLAIN),
        ("unet", dotted("base_model.model.unet."), PLAIN),
        ("unet", dotted("diffusion_model."), PLAIN),
        ("unet", dotted("model.diffusion_model."), PLAIN),
        ("unet", dotted(""), PLAIN),
        ("unet", flat(""), KOHYA),
        ("text_encoder", text(flat("lora_te_")), KOHYA),
        ("text_encoder", text(flat("lora_te1_")), KOHYA),
        ("text_encoder", text(flat("te1_")), KOHYA),
        ("text_encoder", text(flat("lora_clip_l_")), KOHYA),
        ("text_encoder", text(dotted("text_encoder.")), PLAIN),
        ("text_encoder", dotted("text_encoder."), ("lora_linear_layer.down.weight",)),
        ("text_encoder", text(dotted("clip_l.")), KOHYA),
        ("text_encoder", text(dotted("text_encoders.clip_l.transformer.")), PLAIN),
        ("text_encoder", text(dotted("cond_stage_model.transformer.")), KOHYA),
        ("text_encoder", text(dotted("base_model.model.")), PLAIN),
        ("text_encoder", text(flat("lycoris_")), KOHYA),
        ("text_encoder_2", text(flat("lora_te2_")), KOHYA),
        ("text_encoder_2", text(flat("te2_")), KOHYA),
        ("text_encoder_2", text(flat("lora_clip_g_")), KOHYA),
        ("text_encoder_2", text(dotted("text_encoder_2.")), PLAIN),
        ("text_encoder_2", text(dotted("clip_g.")), KOHYA),
        ("text_encoder_2", text(dotted("text_encoders.clip_g.transformer.")), PLAIN),
    ],
)
def test_spellings(part: str, spell: Callable[[str], str], roles: tuple[str, ...]) -> None:
    layers = layers_of(SDXL)
    names = {f"{spell(name)}.{role}": name for name in layers[part] for role in roles}
    found = read_names(names, layers)
    assert not found.unused and found.totals == {part: len(names)}
    assert set(found.layers) == {(part, name) for name in layers[part]}
    for (_, layer), by_role in found.layers.items():
        assert {names[name] for name in by_role.values()} == {layer}
        assert len(by_role) == len(roles)


@pytest.mark.parametrize("family", SMALL, ids=lambda family: family.name)
@pytest.mark.parametrize("separator", [".", "_"])
def test_original_layout_of_every_layer(family: Any, separator: str) -> None:
    """Norms and embeddings as well, in every family."""
    unet = parts_of(family)["unet"]
    there = {value.data_ptr(): name for name, value in unet_layout(unet).items()}
    state = unet.state_dict()
    layers = layers_of(family)
    prefix = "lora_unet_" if separator == "_" else "diffusion_model."
    spelled = {
        there[state[f"{n}.weight"].data_ptr()].removesuffix(".weight"): n for n in layers["unet"]
    }
    names = {f"{prefix}{k.replace('.', separator)}.diff": layer for k, layer in spelled.items()}
    found = read_names(names, layers)
    assert not found.unused and len(names) == len(layers["unet"])
    for (_, layer), by_role in found.layers.items():
        assert names[by_role["diff"]] == layer


def test_folder_says_the_component() -> None:
    layers = layers_of(SDXL)
    for part in layers:
        names = [f"base_model.model.{name}.lora_A.weight" for name in layers[part]]
        assert set(read_names(names, layers, part).layers) == {(part, n) for n in layers[part]}


def test_reading_names_needs_no_torch() -> None:
    """The runtime reads them as well."""
    modules = ("lora_names", "lora_roles", "lora_settings", "lora_base", "lora_folder")
    imports = "; ".join(f"import sdexport.runtime.adapters.{name}" for name in modules)
    code = f"{imports}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_names_of_one_weight() -> None:
    names = ("lora_unet_conv_in.lora_down.weight", "unet.conv_in.lora_A.weight")
    with pytest.raises(CheckpointError, match=rf"{names[0]} and {names[1]} are for the same lay"):
        read_names(names, layers_of(SD1))


@file_kind(
    "lora",
    "any storage type: float64, float32, float16, bfloat16, float8",
    recognised="the tensors' type",
    result="merged in float32",
)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.float8_e4m3fn,
        pytest.param(torch.float64, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(torch.float8_e5m2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_storage_types(dtype: torch.dtype, tmp_path: Path) -> None:
    """Row C10: equal to the float32 form of the same numbers."""
    path = save_kohya(tmp_path / "a.safetensors", random_lora(parts_of(SD1), FEW), 1.0)
    stored = {k: v.to(dtype) for k, v in load_file(path).items()}
    save_file(stored, path)
    save_file({k: v.float() for k, v in stored.items()}, tmp_path / "b.safetensors")
    merged = []
    for name in ("a", "b"):
        unet = copy.deepcopy(parts_of(SD1)["unet"])
        Lora.open(tmp_path / f"{name}.safetensors", 0.8, parts_of(SD1)).merge_into("unet", unet)
        merged.append(unet.state_dict())
    changed = 0
    for key, value in merged[0].items():
        assert torch.allclose(value, merged[1][key], atol=LORA_WEIGHT_ABS, rtol=0), key
        changed += not torch.equal(value, parts_of(SD1)["unet"].state_dict()[key])
    assert changed > 5


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool], ids=str)
@file_kind(
    "lora",
    "quantised LoRA",
    recognised="integers",
    result="rejected",
    says="so the file is quantised",
)
def test_quantised_factors_are_rejected(dtype: torch.dtype, tmp_path: Path, says: str) -> None:
    path = save_kohya(tmp_path / "a.safetensors", random_lora(parts_of(SD1), FEW), 1.0)
    save_file(
        {k: v if k.endswith("alpha") else v.to(dtype) for k, v in load_file(path).items()}, path
    )
    with pytest.raises(CheckpointError, match=f"is {dtype}, {says}"):
        Lora.open(path, 1.0, parts_of(SD1))


@pytest.mark.parametrize("alpha", [torch.tensor(3), torch.tensor([3.0]), torch.tensor(3).half()])
def test_alpha_of_any_form(alpha: torch.Tensor, tmp_path: Path) -> None:
    layer = "lora_unet_conv_in"
    tensors = {"lora_down.weight": torch.ones(2, 4, 3, 3), "lora_up.weight": torch.ones(16, 2)}
    path = tmp_path / "a.safetensors"
    save_file({f"{layer}.{k}": v for k, v in (tensors | {"alpha": alpha}).items()}, path)
    assert Lora.open(path, 1.0, parts_of(SD1)).layers["unet"]["conv_in"].ratio == 3 / 2
    save_file({f"{layer}.{k}": v for k, v in (tensors | {"scale": alpha}).items()}, path)
    assert Lora.open(path, 1.0, parts_of(SD1)).layers["unet"]["conv_in"].ratio == 3


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
@file_kind(
    "lora",
    "LoRA in a pickle",
    recognised="`.pt`, `.bin`, `.ckpt`",
    result="rejected without `--allow-pickle`",
    says="is a pickle, not a .safetensors file",
)
def test_pickles(suffix: str, tmp_path: Path, says: str) -> None:
    path = save_kohya(tmp_path / "a.safetensors", random_lora(parts_of(SD1), FEW), 1.0)
    pickled = tmp_path / f"a{suffix}"
    for content in (load_file(path), {"state_dict": load_file(path)}):
        torch.save(content, pickled)
        with pytest.raises(CheckpointError, match=f"{says}.*--allow-pickle"):
            Lora.open(pickled, 1.0, parts_of(SD1))
        assert Lora.open(pickled, 1.0, parts_of(SD1), allow_pickle=True).layers


@pytest.mark.parametrize(
    ("name", "metadata", "settings"),
    [
        pytest.param(
            "lcm-lora-sdv1-5",
            {},
            "--scheduler lcm --steps 4 --guidance 1",
            marks=file_kind(
                "lora",
                "LCM, TCD, Lightning, Hyper-SD, DMD2, Turbo",
                recognised="the file's or its folder's name, `modelspec.title`, `ss_output_name`",
                result="merged, with a warning that names the settings",
            ),
        ),
        ("a", {"ss_output_name": "LCM_LoRA"}, "--scheduler lcm"),
        ("sdxl_lightning_4step_lora", {}, "--scheduler euler --steps 4 --guidance 1"),
        ("Hyper-SD15-8steps-lora", {}, "--steps 8"),
        ("Hyper-SDXL-1step-lora", {}, "--steps 1"),
        ("tcd-sd15-lora", {}, "--scheduler tcd"),
        ("a", {"modelspec.title": "DMD2 4 step"}, "--steps 4"),
        ("lightning_bolts", {}, None),
        ("calcmap", {}, None),
        ("turbo_engine_car", {}, None),
    ],
)
def test_few_step_loras_name_their_settings(
    name: str,
    metadata: dict[str, str],
    settings: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "x" / f"{name}.safetensors"
    path.parent.mkdir()
    save_kohya(path, random_lora(parts_of(SD1), FEW), 1.0)
    save_file(load_file(path), path, metadata=metadata)
    assert Lora.open(path, 1.0, parts_of(SD1)).layers
    if settings is None:
        assert caplog.messages == []
    else:
        (line,) = caplog.messages
        assert line.startswith(f"{path} is a LoRA for few steps") and settings in line


@pytest.mark.parametrize(
    ("metadata", "warns"),
    [
        ({"ss_v_parameterization": "True"}, True),
        ({"ss_v_parameterization": "False"}, False),
        ({"modelspec.prediction_type": "v"}, True),
        ({"modelspec.prediction_type": "epsilon", "ss_v_parameterization": "None"}, False),
        ({}, False),
    ],
)
def test_other_prediction_type_is_a_warning(
    metadata: dict[str, str],
    warns: bool,
    checkpoint: Path,
    modules: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from sdexport.checkpoints.sources import Options, open_source

    config = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
    assert config.get("prediction_type", "epsilon") == "epsilon"
    path = save_kohya(tmp_path / "a.safetensors", random_lora(modules, FEW), 1.0)
    save_file(load_file(path), path, metadata=metadata)
    open_source(checkpoint, options=Options(lora=(str(path),)))
    expected = f"{path} was trained with the prediction type v_prediction, the checkpoint has epsi"
    assert [m.startswith(expected) for m in caplog.messages] == [True] * warns


def test_flux_lora_with_clip_weights_on_sd1(tmp_path: Path) -> None:
    """Its text encoder is the same, so its layers fit."""
    pairs = random_lora({"text_encoder": parts_of(SD1)["text_encoder"]}, FEW)
    path = save_kohya(tmp_path / "a.safetensors", pairs, 1.0)
    flux = {f"lora_unet_double_blocks_0_img_mlp_0.{k}": torch.ones(2, 2) for k in KOHYA[:2]}
    save_file(load_file(path) | {k: v.clone() for k, v in flux.items()}, path)
    with pytest.raises(CheckpointError, match="is made for Flux or HunyuanVideo, the checkpoint"):
        Lora.open(path, 1.0, parts_of(SD1))
