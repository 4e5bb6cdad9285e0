"""LoRA files: the formula, weights that are ignored, and files that are rejected."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport.checkpoints.lora import Lora, parse_lora
from sdexport.checkpoints.sources import Options, open_source
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
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
    lora = Lora.open(path, 1.0, MODULES)
    assert lora.alphas["unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"] == 30
    assert set(lora.alphas.values()) == {9, 30}
    for text in ("{", "[]"):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match="its LoRA settings are damaged"):
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
    total = len(load_file(path))
    save_file(load_file(path) | {f"lora_te2_x{i}.alpha": torch.ones(()) for i in range(3)}, path)
    Lora.open(path, 1.0, MODULES)
    assert f"3 of {total + 3} weights fit no layer of this checkpoint" in caplog.text
    assert "such as lora_te2_x0.alpha" in caplog.text


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
    save_file({"lora_unet_double_blocks_0.lora_up.weight": torch.ones(2, 2)}, tmp_path / "a")
    fails(tmp_path / "a", f"{says}.* lora_unet_double.* another family")


def test_lora_of_another_family(tmp_path: Path) -> None:
    modules = random_modules(SDXL)
    pairs = random_lora(modules, WIDE)
    path = save_kohya(tmp_path / "a.safetensors", pairs, 1.0, modules["unet"])
    fails(path, "unet: .* expected a change of .* made for another family")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("oft_blocks", "OFT"),
        ("diff", "full-difference"),
        ("diff_b", "full-difference"),
        ("on_input", "IA3"),
        ("lora_B.bias", "LoRA-with-bias"),
    ],
)
def test_other_methods_are_named(name: str, method: str, path: Path) -> None:
    save_file(load_file(path) | {f"{CONV}.{name}": torch.ones(2, 2)}, path)
    fails(path, f"{method} layers are not supported; expected plain LoRA layers")


def test_damaged_lora_is_named(path: Path) -> None:
    tensors = load_file(path)
    down = next(name for name in tensors if name.endswith("lora_down.weight"))
    up = down.replace("down.weight", "up.weight")
    save_file({k: v for k, v in tensors.items() if k != up}, path)
    fails(path, "one of its two matrices is missing")
    save_file(tensors | {up: torch.ones(16, 7)}, path)
    fails(path, r"shapes \(16, 7\) and \(3, \d+\) do not multiply")
    save_file(tensors | {down: tensors[down] * torch.nan}, path)
    fails(path, "holds NaN or infinity")
    save_file(tensors | {down.replace("lora_down.weight", "alpha"): torch.tensor(torch.inf)}, path)
    fails(path, "holds NaN or infinity")
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}, path)
    fails(path, "is a Stable Diffusion checkpoint; expected a LoRA")
    path.write_bytes(b"<html>")
    fails(path, "is not a file of weights, but a web page")


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
        with pytest.raises(FileNotFoundError, match="expected FILE or FILE:SCALE"):
            parse_lora(text)


def test_pickle_only_on_request(path: Path, tmp_path: Path) -> None:
    torch.save(load_file(path), tmp_path / "a.pt")
    fails(tmp_path / "a.pt", "is a pickle.*--allow-pickle")
    assert Lora.open(tmp_path / "a.pt", 1.0, MODULES, allow_pickle=True).layers
