"""LoRA files: the formula, weights that are ignored, and files that are rejected."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport.checkpoints.lora import Lora
from sdexport.checkpoints.sources import Options, open_source
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.runtime.adapters.lora_folder import parse_lora
from tests.helpers.file_kinds import file_kind
from tests.helpers.lora_files import ATTENTION, WIDE, random_lora, save_kohya, save_peft
from tests.helpers.original_layout import SMALL, random_modules
from tests.tolerances import (
    LORA_CHANGE_ABS,
    LORA_CONVOLUTION_ABS,
    LORA_CONVOLUTION_REL,
    LORA_WEIGHT_ABS,
)

SD1, _, SDXL, _ = SMALL
MODULES = {k: v for k, v in random_modules(SD1).items() if k != "vae"}
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_kohya(tmp_path / "a.safetensors", random_lora(MODULES, ATTENTION), 1.0)


def conv_change(tensors: Tensors, tmp_path: Path) -> torch.Tensor:
    """The change that a file makes to the first convolution."""
    save_file({f"{CONV}.{k}": v for k, v in tensors.items()}, tmp_path / "conv.safetensors")
    unet = copy.deepcopy(MODULES["unet"])
    Lora.open(tmp_path / "conv.safetensors", 2.0, MODULES).merge_into("unet", unet)
    name = "down_blocks.0.resnets.0.conv1"
    return unet.get_submodule(name).weight - MODULES["unet"].get_submodule(name).weight


def test_convolution_equals_the_two_convolutions(tmp_path: Path) -> None:
    down, up = torch.randn(3, 16, 3, 3), torch.randn(16, 3, 1, 1)
    change = conv_change(
        {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(6.0)}, tmp_path
    )
    x = torch.randn(2, 16, 9, 9)
    conv = torch.nn.functional.conv2d
    assert torch.allclose(
        conv(x, change),
        2 * 6 / 3 * conv(conv(x, down), up),
        atol=LORA_CONVOLUTION_ABS,
        rtol=LORA_CONVOLUTION_REL,
    )


def test_convolution_with_a_middle_matrix(tmp_path: Path) -> None:
    down, mid, up = torch.randn(3, 16, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(16, 3, 1, 1)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    change = conv_change(tensors, tmp_path)
    x = torch.randn(2, 16, 9, 9)
    conv = torch.nn.functional.conv2d
    expected = 2 * conv(conv(conv(x, down), mid), up)
    assert torch.allclose(
        conv(x, change), expected, atol=LORA_CONVOLUTION_ABS, rtol=LORA_CONVOLUTION_REL
    )


def test_half_precision_is_merged_in_float32(tmp_path: Path) -> None:
    down, up = torch.randn(3, 16, 3, 3).half(), torch.randn(16, 3, 1, 1).half()
    change = conv_change({"lora_down.weight": down, "lora_up.weight": up}, tmp_path)
    expected = 2 * torch.einsum("or,rikl->oikl", up[:, :, 0, 0].float(), down.float())
    assert torch.allclose(change, expected, atol=LORA_CHANGE_ABS, rtol=0)


def test_settings_next_to_a_peft_file(tmp_path: Path) -> None:
    pairs = {"unet": random_lora(MODULES, ATTENTION)["unet"]}
    path = save_peft(tmp_path / "adapter_model.safetensors", pairs)
    settings = {"r": 3, "lora_alpha": 9, "alpha_pattern": {"attn1.to_q": 30}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    layers = Lora.open(path, 1.0, MODULES).layers["unet"]
    assert layers["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"].ratio == 30 / 3
    assert {layer.ratio for layer in layers.values()} == {9 / 3, 30 / 3}
    for text in ("{", "[]", '{"lora_alpha": "x"}', '{"lora_alpha": 1, "alpha_pattern": 3}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match="its LoRA settings are damaged"):
            Lora.open(path, 1.0, MODULES)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1e400}')
    with pytest.raises(CheckpointError, match=r"its LoRA settings give .* alpha inf"):
        Lora.open(path, 1.0, MODULES)


def test_lora_reaches_the_checkpoint(checkpoint: Path, modules: Any, tmp_path: Path) -> None:
    pairs = random_lora(modules, ATTENTION)
    first = save_kohya(tmp_path / "a.safetensors", pairs, 1.5)
    second = save_peft(tmp_path / "b.safetensors", {"unet": pairs["unet"]})
    opened = open_source(checkpoint, options=Options(lora=(f"{first}:0.5", str(second))))
    name, (down, up) = next(iter(pairs["unet"].items()))
    expected = modules["unet"].get_submodule(name).weight + (0.5 * 1.5 / 3 + 1) * up @ down
    assert torch.allclose(
        opened.load("unet").get_submodule(name).weight, expected, atol=LORA_WEIGHT_ABS, rtol=0
    )
    changed = opened.load("text_encoder").state_dict()
    assert any(
        not torch.equal(changed[k], v) for k, v in modules["text_encoder"].state_dict().items()
    )
    assert opened.source["lora.1.scale"] == "0.5" and opened.source["lora.2.scale"] == "1"
    assert len(opened.source["lora.1.sha256"]) == 64
    assert str(tmp_path) not in str(opened.source)


def test_weights_that_fit_no_layer_are_counted(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Row C12: one line for each component, and its own sentence where nothing is left."""
    tensors = load_file(path)
    more = {f"lora_te2_x{i}.alpha": torch.ones(()) for i in range(3)} | {"noise": torch.ones(1)}
    save_file(tensors | more, path)
    Lora.open(path, 1.0, MODULES)
    assert caplog.messages == [
        f"{path}: text encoder 2: 0 of 3 used; the others are for a text encoder 2, which the "
        "checkpoint does not have, such as lora_te2_x0.alpha",
        f"{path}: other weights: 0 of 1 used; the others fit no layer, such as noise",
    ]
    caplog.clear()
    save_file(tensors | {f"lora_unet_mid_block_{i}.alpha": torch.ones(()) for i in range(2)}, path)
    Lora.open(path, 1.0, MODULES)
    unet = sum(name.startswith("lora_unet") for name in tensors)
    assert caplog.messages == [
        f"{path}: UNet: {unet} of {unet + 2} used; the others fit no layer, such as "
        "lora_unet_mid_block_0.alpha"
    ]


@pytest.mark.parametrize(("part", "label"), [("unet", "UNet"), ("text_encoder", "text encoder")])
def test_component_that_gets_nothing_has_its_own_sentence(
    part: str, label: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
    tensors = load_file(path)
    count = sum(name.startswith(prefix) for name in tensors)
    save_file({k.replace(prefix, f"{prefix}x_"): v for k, v in tensors.items()}, path)
    Lora.open(path, 1.0, MODULES)
    (message,) = caplog.messages
    assert message.startswith(f"{path}: {label}: 0 of {count} used; the others fit no layer")
    assert message.endswith(f"; the LoRA does not change the {label}")


def fails(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        Lora.open(path, 1.0, MODULES)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@file_kind(
    "lora_base",
    "LoRA of an unknown model",
    recognised="no layer of the checkpoint has one of its names",
    result="rejected",
    says="none of its 1 weights fits this checkpoint",
)
def test_file_without_a_layer_that_fits(tmp_path: Path, says: str) -> None:
    save_file({"lora_unet_new_block_0.lora_up.weight": torch.ones(2, 2)}, tmp_path / "a")
    fails(tmp_path / "a", f"{says}.* lora_unet_new_block.* may be made for another family")


def test_lora_of_another_family(tmp_path: Path) -> None:
    modules = random_modules(SDXL)
    pairs = random_lora(modules, WIDE)
    path = save_kohya(tmp_path / "a.safetensors", pairs, 1.0, modules["unet"])
    fails(path, "made for Stable Diffusion XL, the checkpoint is Stable Diffusion 1 or 2")


UNSUPPORTED = "which is not supported"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(
            f"{CONV}.lora_E",
            (3, 1),
            marks=file_kind(
                "lora",
                "AdaLoRA",
                recognised="`.lora_E`, `ranknum`",
                result="rejected",
                says="it holds AdaLoRA",
            ),
        ),
        pytest.param(
            f"{CONV}.lambda_layer",
            (1, 3),
            marks=file_kind(
                "lora",
                "T-LoRA",
                recognised="`.lambda_layer`, `.q_layer`, `.p_layer`",
                result="rejected",
                says="it holds T-LoRA, whose rank depends on the step",
            ),
        ),
        pytest.param(
            "unet.mid_block.attentions.0.proj_in.vera_lambda_b",
            (3,),
            marks=file_kind(
                "lora",
                "VeRA, VB-LoRA, RandLoRA",
                recognised="`vera_lambda_*`, `vblora_*`, `randlora_*`",
                result="rejected",
                says="it holds PEFT's VeRA or a relative of it",
            ),
        ),
        pytest.param(
            "unet.mid_block.attentions.0.proj_in.oft_R.weight",
            (3, 3),
            marks=file_kind(
                "lora",
                "OFT of PEFT",
                recognised="`.oft_R`",
                result="rejected",
                says="it holds PEFT's OFT",
            ),
        ),
        pytest.param(
            "unet.mid_block.attentions.0.proj_in.boft_R",
            (3, 3),
            marks=file_kind(
                "lora",
                "BOFT of PEFT",
                recognised="`.boft_R`, `.boft_s`",
                result="rejected",
                says="it holds PEFT's BOFT",
            ),
        ),
        pytest.param(
            f"{CONV}.oft_diag",
            (3, 3),
            marks=file_kind(
                "lora",
                "OFT of old versions of sd-scripts",
                recognised="`.oft_diag`",
                result="rejected",
                says="it holds OFT with one block for each layer (oft_diag)",
            ),
        ),
        pytest.param(
            "unet.mid_block.attentions.0.proj_in.ia3_l",
            (3,),
            marks=file_kind(
                "lora",
                "IA3 of PEFT",
                recognised="`.ia3_l`",
                result="rejected",
                says="it holds PEFT's IA3",
            ),
        ),
        pytest.param(
            f"{CONV}.bias_values",
            (3,),
            marks=file_kind(
                "lora",
                "LyCORIS extract with sparse differences",
                recognised="`.bias_indices`, `.bias_values`, `.bias_size`",
                result="rejected",
                says="it holds a LyCORIS extract with sparse differences",
            ),
        ),
        pytest.param(
            f"{CONV}.reshape_weight",
            (4,),
            marks=file_kind(
                "lora",
                "LoRA that changes the shape of a weight",
                recognised="`.reshape_weight`, `.set_weight`",
                result="rejected",
                says="it holds weights of another shape (reshape_weight or set_weight)",
            ),
        ),
        pytest.param(
            f"{CONV}.lora_down.scale_weight",
            (1,),
            marks=file_kind(
                "lora",
                "LoRA in scaled float8",
                recognised="`scale_weight`, `weight_scale`, `comfy_quant`",
                result="rejected",
                says="it holds scaled float8 weights",
            ),
        ),
        pytest.param(
            "base_model.model.conv_in.modules_to_save.weight",
            (16, 4, 3, 3),
            marks=file_kind(
                "lora",
                "whole layers next to a LoRA of PEFT",
                recognised="`.modules_to_save`",
                result="rejected",
                says="it holds layers that PEFT saves whole (modules_to_save)",
            ),
        ),
        pytest.param(
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor"
            ".to_k_custom_diffusion.weight",
            (16, 32),
            marks=file_kind(
                "lora",
                "Custom Diffusion",
                recognised="`to_k_custom_diffusion`",
                result="rejected",
                says="it holds Custom Diffusion",
            ),
        ),
        pytest.param(
            "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.lora_down.weight",
            (3, 16),
            marks=file_kind(
                "lora",
                "motion LoRA of AnimateDiff",
                recognised="`motion_modules`",
                result="rejected",
                says="it holds an AnimateDiff motion LoRA",
            ),
        ),
        pytest.param(
            "lora_controlnet",
            (1,),
            marks=file_kind(
                "lora",
                "ControlLoRA",
                recognised="`lora_controlnet`",
                result="rejected",
                says="it holds a ControlLoRA",
            ),
        ),
        pytest.param(
            "text_encoder.embeddings.token_embedding.lora_embedding_A",
            (3, 597),
            marks=file_kind(
                "lora",
                "LoRA of an embedding table",
                recognised="`.lora_embedding_A`",
                result="rejected",
                says="it holds a LoRA of an embedding table",
            ),
        ),
    ],
)
def test_unsupported_methods_are_named(
    name: str, shape: tuple[int, ...], path: Path, says: str
) -> None:
    """Row C12: what cannot be merged is rejected by its kind."""
    save_file(load_file(path) | {name: torch.ones(shape)}, path)
    fails(path, rf"{re.escape(says)}, such as {re.escape(name)}, {UNSUPPORTED}")


@file_kind(
    "lora",
    "any other weight of a layer that the checkpoint has",
    recognised="the name of a layer, and an unknown ending",
    result="rejected",
    says="a weight called 'new_factor' is not supported for a layer",
)
@pytest.mark.parametrize("layer", [CONV, "unet.mid_block.attentions.0.proj_in"])
def test_unknown_weights_of_a_layer_are_named(layer: str, path: Path, says: str) -> None:
    save_file(load_file(path) | {f"{layer}.new_factor": torch.ones(2)}, path)
    fails(path, f"{layer}.new_factor: {says}")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"hada_w1_a": (2, 2)}, "it holds factors of LoRA and of LoHa"),
        ({"lora_mid.weight": (2, 2), "b1.weight": (2, 2)}, "factors of LoRA and of GLoRA"),
        ({"t1": (2, 2)}, "a weight called 't1' is not supported"),
        ({"hada_t1": (2, 2)}, "LoRA with hada_t1 is not supported"),
        ({"diff": (2, 2)}, "factors of LoRA and of full difference"),
        ({"dora_scale": (5, 1, 1, 1)}, r"DoRA's scale has the shape \(5, 1, 1, 1\), for 16 out"),
        ({"diff_b": (5,)}, "expected a bias of 16, got 5 values"),
        ({"alpha": (2,)}, "alpha has 2 values, expected one"),
        ({"dora_scale": ()}, r"DoRA's scale has the shape \(\)"),
        ({"lora_A.weight": (3, 16, 3, 3)}, f"{CONV}.lora_.* are for the same layer"),
    ],
)
def test_layers_that_do_not_add_up(
    more: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    tensors = {"lora_down.weight": torch.ones(3, 16, 3, 3), "lora_up.weight": torch.ones(16, 3)}
    tensors |= {k: torch.ones(shape) for k, shape in more.items()}
    path = tmp_path / "a.safetensors"
    save_file({f"{CONV}.{k}": v for k, v in tensors.items()}, path)
    fails(path, message)


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_down.weight": (), "lora_up.weight": ()},
        {"lora_down.weight": (3, 0), "lora_up.weight": (0, 3)},
        {"hada_w1_a": (3,), "hada_w1_b": (), "hada_w2_a": (3, 3), "hada_w2_b": (3, 3)},
        {"lokr_w1": (3, 3, 3), "lokr_w2": (2, 2)},
        {"a1.weight": (), "a2.weight": (), "b1.weight": (1, 2), "b2.weight": (2, 2)},
        {"oft_blocks": ()},
        {"oft_blocks": (4, 4, 2, 2)},
        {"oft_blocks": (3, 4, 4)},
        {"on_input": (), "weight": (5,)},
        {"diff": (16, 16)},
        {"diff": ()},
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{CONV}.{k}": torch.ones(shape) for k, shape in shapes.items()}, path)
    fails(path, "down_blocks.0.resnets.0.conv1: .*the LoRA is damaged or made for another")


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("lora_up.weight",), "a part of its LoRA is missing: lora_down"),
        (("hada_w1_a", "hada_w1_b", "hada_w2_a"), "part of its LoHa is missing: hada_w2_b"),
        (("lokr_w1",), "part of its LoKr is missing: lokr_w2_a, lokr_w2_b"),
        (("lokr_w1_a", "lokr_w2"), "part of its LoKr is missing: lokr_w1_b"),
        (("a1.weight", "a2.weight"), "part of its GLoRA is missing: b1, b2"),
        (("on_input",), "part of its IA3 is missing: weight"),
        (("alpha",), "it holds only its alpha"),
        (("dora_scale", "alpha"), "it holds only its alpha and dora_scale"),
    ],
)
def test_missing_parts_are_named(roles: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{CONV}.{role}": torch.ones(1) for role in roles}, path)
    fails(path, message)


def test_damaged_lora_is_named(path: Path) -> None:
    tensors = load_file(path)
    down = next(name for name in tensors if name.endswith("lora_down.weight"))
    up = down.replace("down.weight", "up.weight")
    save_file({k: v for k, v in tensors.items() if k != up}, path)
    fails(path, "a part of its LoRA is missing: lora_up; the LoRA is damaged")
    save_file(tensors | {up: torch.ones(16, 7)}, path)
    fails(path, r"shapes \(16, 7\) and \(3, \d+\) do not multiply")
    empty = {up: torch.ones(16, 0), down: torch.ones(0, tensors[down].shape[1])}
    save_file(tensors | empty, path)
    fails(path, r"shapes \(16, 0\) and \(0, \d+\) hold no values")
    save_file(tensors | {down: tensors[down] * torch.nan}, path)
    fails(path, "holds NaN or infinity")
    save_file(tensors | {down.replace("lora_down.weight", "alpha"): torch.tensor(torch.inf)}, path)
    fails(path, "holds NaN or infinity")
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}, path)
    fails(path, "is a Stable Diffusion checkpoint; expected a LoRA")
    path.write_bytes(b"<html>")
    fails(path, "is not a file of weights, but a web page")


@pytest.mark.parametrize("name", ["a\nb", "x" * 5000, "\x1b[31m"])
def test_names_of_weights_are_one_short_line(
    name: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(load_file(path) | {name: torch.ones(1)}, path)
    Lora.open(path, 1.0, MODULES)
    (line,) = caplog.messages
    assert line.isprintable() and len(line) < 400
    save_file({f"lora_unet_{name}.alpha": torch.ones(1)}, path)
    fails(path, r"none of its 1 weights fits|expected a LoRA")


def test_scale_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("a.safetensors", "a:b.safetensors", "x:0.5", r"C:\loras\a.safetensors")
    for name in names:
        Path(name).write_text("")
        assert parse_lora(name) == (Path(name), 1.0)
        assert parse_lora(f"{name}:0.25") == (Path(name), 0.25)
        assert parse_lora(f"{name}:-1e0") == (Path(name), -1.0)
    for number in ("nan", "inf", "-inf", "1e9", "101", "", "half", "0,5"):
        with pytest.raises(
            InvalidArgumentError, match=r"a\.safetensors: expected a scale of -100 to 100"
        ):
            parse_lora(f"a.safetensors:{number}")
    for text in ("b.safetensors", "b.safetensors:1", ":1", "", ":"):
        with pytest.raises(FileNotFoundError, match="expected FILE, FOLDER or FILE:SCALE"):
            parse_lora(text)


def test_merged_weights_are_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"lora_down.weight": (2, 16, 3, 3), "lora_up.weight": (16, 2)}
    save_file({f"{CONV}.{k}": torch.full(s, 1e25) for k, s in tensors.items()}, path)
    lora = Lora.open(path, 1.0, MODULES)
    with pytest.raises(CheckpointError, match="conv1: the merged weight holds NaN or infinity"):
        lora.merge_into("unet", copy.deepcopy(MODULES["unet"]))


def test_pickle_only_on_request(path: Path, tmp_path: Path) -> None:
    torch.save(load_file(path), tmp_path / "a.pt")
    fails(tmp_path / "a.pt", "is a pickle.*--allow-pickle")
    assert Lora.open(tmp_path / "a.pt", 1.0, MODULES, allow_pickle=True).layers
