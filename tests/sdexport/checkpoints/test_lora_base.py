"""A LoRA of another model is said to be that: by its names, its widths or its header."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport.checkpoints.lora import Lora
from sdexport.engines.errors import CheckpointError
from tests.helpers.file_kinds import file_kind
from tests.helpers.lora_files import ATTENTION, random_lora, save_kohya, save_peft
from tests.helpers.original_layout import SMALL, random_modules

SD1, SD2, SDXL, REFINER = SMALL


def modules(family: object) -> dict[str, object]:
    return {k: v for k, v in random_modules(family).items() if k != "vae"}


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(
            ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_3_linear1"),
            marks=file_kind(
                "lora_base",
                "Flux, HunyuanVideo",
                recognised="`double_blocks`, `single_blocks`, `single_transformer_blocks`",
                result="rejected",
                says="it is made for Flux or HunyuanVideo",
            ),
        ),
        pytest.param(
            (
                "transformer.single_transformer_blocks.0.attn.to_q",
                "transformer.transformer_blocks.0.attn.to_q",
            ),
            marks=file_kind(
                "lora_base",
                "Flux, as diffusers names it",
                recognised="`single_transformer_blocks`",
                result="rejected",
                says="it is made for Flux",
            ),
        ),
        pytest.param(
            ("lora_unet_joint_blocks_0_context_block_attn_qkv", "lora_te3_encoder_block_0_layer_0"),
            marks=file_kind(
                "lora_base",
                "Stable Diffusion 3",
                recognised="`joint_blocks`, or its header",
                result="rejected",
                says="it is made for Stable Diffusion 3",
            ),
        ),
        pytest.param(
            ("transformer.transformer_blocks.0.attn.add_k_proj",),
            marks=file_kind(
                "lora_base",
                "Stable Diffusion 3 or Flux, as diffusers names it",
                recognised="`transformer_blocks.*.attn`",
                result="rejected",
                says="it is made for Stable Diffusion 3 or Flux",
            ),
        ),
        pytest.param(
            ("transformer_blocks.0.img_mlp.net.0.proj", "transformer_blocks.0.attn.to_q"),
            marks=file_kind(
                "lora_base",
                "Qwen-Image",
                recognised="`img_mlp`, `txt_mlp`, `img_mod`",
                result="rejected",
                says="it is made for Qwen-Image",
            ),
        ),
        pytest.param(
            ("diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.ffn.0"),
            marks=file_kind(
                "lora_base",
                "Wan",
                recognised="`blocks.*.self_attn`, `blocks.*.ffn`",
                result="rejected",
                says="it is made for Wan",
            ),
        ),
        pytest.param(
            ("lora_prior_unet_down_blocks_0_1_attn_to_q",),
            marks=file_kind(
                "lora_base",
                "Stable Cascade",
                recognised="`lora_prior_unet_*`",
                result="rejected",
                says="it is made for Stable Cascade",
            ),
        ),
        pytest.param(
            ("transformer.transformer_blocks.0.attn1.to_q",),
            marks=file_kind(
                "lora_base",
                "PixArt, LTX, CogVideoX, as diffusers names them",
                recognised="`transformer.transformer_blocks.*.attn1`",
                result="rejected",
                says="it is made for a diffusion transformer",
            ),
        ),
        pytest.param(
            ("diffusion_model.layers.0.attention.to_q",),
            marks=file_kind(
                "lora_base",
                "Lumina, Z-Image",
                recognised="`layers.*.attention`",
                result="rejected",
                says="it is made for Lumina or Z-Image",
            ),
        ),
        pytest.param(
            ("transformer.joint_transformer_blocks.1.attn.to_q",),
            marks=file_kind(
                "lora_base",
                "AuraFlow",
                recognised="`joint_transformer_blocks`, `double_layers`",
                result="rejected",
                says="it is made for AuraFlow",
            ),
        ),
        pytest.param(
            ("double_stream_blocks.0.block.attn1.to_q",),
            marks=file_kind(
                "lora_base",
                "HiDream",
                recognised="`double_stream_blocks`, `single_stream_blocks`",
                result="rejected",
                says="it is made for HiDream",
            ),
        ),
        pytest.param(
            ("lora_unet_blocks_3_attn1_qkv",),
            marks=file_kind(
                "lora_base",
                "Hunyuan-DiT",
                recognised="`blocks.*.attn1`",
                result="rejected",
                says="it is made for Hunyuan-DiT or another diffusion transformer",
            ),
        ),
    ],
)
def test_names_of_another_model(layers: tuple[str, ...], tmp_path: Path, says: str) -> None:
    path = tmp_path / "a.safetensors"
    shapes = {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2)}
    save_file({f"{n}.{k}": torch.ones(s) for n in layers for k, s in shapes.items()}, path)
    with pytest.raises(CheckpointError, match=f"none of its .*{says}"):
        Lora.open(path, 1.0, modules(SD1))


@file_kind(
    "lora_base",
    "SD 1 on SDXL, SDXL on SD 1, SD 2 on SD 1, and so on",
    recognised="number of blocks, second text encoder, width of cross-attention, or its header",
    result="rejected",
    says="is made for",
)
@pytest.mark.parametrize("layout", ["kohya", "peft"])
@pytest.mark.parametrize(
    ("of", "on", "model"),
    [
        (SD1, SDXL, "Stable Diffusion 1 or 2, the checkpoint is Stable Diffusion XL"),
        (SDXL, SD1, "Stable Diffusion XL, the checkpoint is Stable Diffusion 1 or 2"),
    ],
)
def test_another_stable_diffusion(
    of: object, on: object, model: str, layout: str, tmp_path: Path, says: str
) -> None:
    pairs = random_lora(modules(of), ATTENTION)
    path = tmp_path / "a.safetensors"
    save = {"kohya": lambda: save_kohya(path, pairs, 1.0), "peft": lambda: save_peft(path, pairs)}
    save[layout]()
    with pytest.raises(CheckpointError, match=f"{says} {model}"):
        Lora.open(path, 1.0, modules(on))


@pytest.mark.parametrize(
    ("metadata", "model"),
    [
        ({"modelspec.architecture": "flux-1-dev/lora"}, "Flux"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "Stable Diffusion XL"),
        ({"ss_base_model_version": "sd3_m"}, "Stable Diffusion 3"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
        ({"ss_base_model_version": "lumina2"}, "lumina2"),
    ],
)
def test_header_names_the_model(metadata: dict[str, str], model: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"lora_unet_new_0.lora_down.weight": torch.ones(2, 2)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"it is made for {model}"):
        Lora.open(path, 1.0, modules(SD1))


@pytest.mark.parametrize(("width", "model"), [(768, "1"), (1024, "2"), (2048, "XL")])
def test_width_names_the_model(width: int, model: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    layer = "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_k"
    tensors = {"lora_down.weight": torch.ones(2, width), "lora_up.weight": torch.ones(32, 2)}
    save_file({f"{layer}.{k}": v for k, v in tensors.items()}, path)
    on = SDXL if model != "XL" else SD1
    with pytest.raises(CheckpointError, match=f"is made for Stable Diffusion {model}, the ch"):
        Lora.open(path, 1.0, modules(on))


@file_kind(
    "lora_base",
    "a header that names another model, although all weights fit",
    recognised="`ss_base_model_version`, `ss_v2`, `modelspec.architecture`",
    result="merged, with a warning",
    says="its header says Stable Diffusion XL, the checkpoint is Stable Diffusion 1 or 2",
)
def test_header_of_another_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, says: str
) -> None:
    path = save_kohya(tmp_path / "a.safetensors", random_lora(modules(SD1), ATTENTION), 1.0)
    metadata = {"ss_base_model_version": "sdxl_base_v1-0", "ss_network_module": "networks.lora"}
    save_file(load_file(path), path, metadata=metadata)
    assert Lora.open(path, 1.0, modules(SD1)).layers
    assert caplog.messages == [f"{path}: {says}"]
    for metadata in ({"ss_v2": "True"}, {"ss_v2": "False", "modelspec.title": "style"}):
        caplog.clear()
        save_file(load_file(path), path, metadata=metadata)
        Lora.open(path, 1.0, modules(SD1))
        assert caplog.messages == []


@pytest.mark.parametrize("family", SMALL, ids=lambda family: family.name)
def test_own_family_is_recognised_without_a_word(
    family: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = random_lora(modules(family), ATTENTION)
    unet = modules(family)["unet"] if family in (SDXL, REFINER) else None
    path = save_kohya(tmp_path / "a.safetensors", pairs, 1.0, unet)
    lora = Lora.open(path, 1.0, modules(family))
    assert {part: len(of_part) for part, of_part in lora.layers.items()} == {
        part: len(of_part) for part, of_part in pairs.items()
    }
    assert caplog.messages == []


def test_unknown_header_entries_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_kohya(tmp_path / "a.safetensors", random_lora(modules(SD1), ATTENTION), 1.0)
    metadata = {"ss_steps": "1", "sshs_model_hash": "a", "format": "pt", "my_rule": "x", "b": "y"}
    save_file(load_file(path), path, metadata=metadata)
    Lora.open(path, 1.0, modules(SD1))
    assert caplog.messages == [f"{path}: unknown metadata is ignored: b, my_rule"]
