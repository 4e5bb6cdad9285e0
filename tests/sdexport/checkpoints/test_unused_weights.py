"""Field cases C1 and C3: every weight of a checkpoint is used, dispensable, or named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.single_file import SingleFile
from sdexport.checkpoints.unused_weights import MAY_REMAIN, check_all_used
from sdexport.engines.errors import CheckpointError
from tests.helpers.file_kinds import file_kind
from tests.helpers.linked_folder import linked_folder
from tests.helpers.original_layout import SMALL, original_layout, random_modules

SD1, SD2, SDXL, REFINER = SMALL
UNET, CLIP = "model.diffusion_model.", "cond_stage_model.transformer."


def write(folder: Path, family: object, *names: str) -> Path:
    """A single file of a family with further weights of these names."""
    tensors = original_layout(family, random_modules(family))  # type: ignore[arg-type]
    tensors |= {name: torch.ones(2, 2) for name in names}
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def fails(path: Path, *messages: str) -> None:
    with pytest.raises(CheckpointError) as error:
        SingleFile.open(path, families=SMALL)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    for message in messages:
        assert message in str(error.value)


@file_kind(
    "checkpoint",
    "unCLIP (Stable unCLIP)",
    recognised="`label_emb.*`, `noise_augmentor.*`, `embedder.*`",
    result="rejected",
    says="an unCLIP (image variation) model, which is not supported",
)
@pytest.mark.parametrize(
    "names",
    [
        (f"{UNET}label_emb.0.0.weight", "noise_augmentor.time_embed.weight"),
        (f"{UNET}label_emb.0.0.weight",),
        ("noise_augmentor.data_mean",),
        ("embedder.model.visual.proj",),
    ],
)
def test_c1_unclip(names: tuple[str, ...], says: str, tmp_path: Path) -> None:
    fails(write(tmp_path, SD2, *names), says, names[0])


@file_kind(
    "checkpoint",
    "checkpoint with other weights in it",
    recognised="weights that no component of the family has, outside of the list in the "
    "[export guide](export.md#sources)",
    result="rejected",
    says="would not be used by Stable Diffusion",
)
@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        (SD1, UNET),
        (SD1, CLIP),
        (SD1, "first_stage_model."),
        (SD1, "unknown_part."),
        (SD2, "cond_stage_model.model."),
        (SDXL, "conditioner.embedders.1.model."),
        (SDXL, "conditioner.embedders.2.model."),
        (REFINER, UNET),
    ],
)
def test_c3_weights_left_over(family: object, prefix: str, says: str, tmp_path: Path) -> None:
    name = f"{prefix}extra.weight"
    fails(write(tmp_path, family, name), says, f"1 weight ({name})")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("control_model.zero_convs.0.0.weight", "a ControlNet"),
        (f"{UNET}input_blocks.1.motion_modules.0.weight", "an AnimateDiff"),
        ("ip_adapter.1.to_k_ip.weight", "an IP-Adapter"),
        ("lora_unet_mid_block.lora_up.weight", "a LoRA"),
        (f"{UNET}position_net.linears.0.weight", "a GLIGEN model"),
        ("joint_blocks.0.x_block.weight", "parts of SD 3 or Flux"),
        ("bundle_emb.word.string_to_param.*", "embeddings"),
        ("low_res_model.betas", "an upscaling model"),
        ("depth_model.model.weight", "a depth-to-image model"),
        (f"{UNET}label_emb.0.0.weight_scale_recip", "quantised in an unknown way"),
        (f"{UNET}label_emb.0.0.scale_inv", "quantised in an unknown way"),
        ("input_blocks.1.0.emb_layers.1.scale_weight", "quantised in an unknown way"),
    ],
)
def test_c3_known_parts_are_named(name: str, meaning: str) -> None:
    with pytest.raises(CheckpointError) as error:
        check_all_used(Path("model.safetensors"), "SD 1", ["model_ema.decay", name])
    for message in (meaning, "not supported", name, "model.safetensors"):
        assert message in str(error.value)


def test_c3_controlnet_in_a_whole_checkpoint(tmp_path: Path) -> None:
    fails(write(tmp_path, SD1, "control_model.zero_convs.0.0.weight"), "a ControlNet")


def test_c3_many_weights_are_counted(tmp_path: Path) -> None:
    names = [f"{UNET}block.{i}.weight" for i in range(9)]
    fails(write(tmp_path, SD1, *names), "9 weights (", names[0], " and 6 more)")


REMAIN = [
    "model_ema.diffusion_modelinput_blocks00weight",
    "model_ema.decay",
    "model_ema.num_updates",
    "first_stage_model.model_ema.decoderconv_inweight",
    "first_stage_model.loss.discriminator.main.0.weight",
    "betas",
    "alphas_cumprod_prev",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_mean_coef1",
    "lvlb_weights",
    "scale_factor",
    "denoiser.sigmas",
    "optimizer_states.0.exp_avg",
    "lr_schedulers.0",
    "global_step",
    f"{CLIP}text_projection.weight",
    f"{CLIP}text_model.embeddings.position_ids",
    f"{CLIP}vision_model.post_layernorm.weight",
    "cond_stage_model.logit_scale",
]


def test_c3_what_may_remain(tmp_path: Path) -> None:
    opened = SingleFile.open(write(tmp_path, SD1, *REMAIN), families=SMALL)
    assert opened.load("unet") is not None


def test_c3_weights_below_two_names(tmp_path: Path) -> None:
    """A text encoder's weight under its name of today and that of an old transformers."""
    fails(write(tmp_path, SD1, f"{CLIP}final_layer_norm.weight"), "1 weight (cond_stage_model")


def test_c3_a_second_vae(tmp_path: Path) -> None:
    fails(write(tmp_path, SD1, "vae.decoder.conv_in.weight"), "1 weight (vae.decoder.conv_in")


def test_c3_a_layer_after_the_last_one(tmp_path: Path) -> None:
    """SD 2's files have one layer more than is used, but not two."""
    prefix = SD2.text_encoders["text_encoder"].prefix
    count = SD2.text_encoders["text_encoder"].config["num_hidden_layers"]
    SingleFile.open(write(tmp_path, SD2), families=SMALL)
    fails(
        write(tmp_path, SD2, f"{prefix}transformer.resblocks.{count + 1}.ln_1.weight"), "1 weight"
    )


@pytest.mark.parametrize("extra", [{"ema_state": torch.ones(2)}, {"more": {"a": [torch.ones(1)]}}])
def test_c3_tensors_next_to_the_state_of_a_pickle(extra: dict[str, object], tmp_path: Path) -> None:
    tensors = original_layout(SD1, random_modules(SD1))
    path = tmp_path / "model.ckpt"
    known = {"global_step": 7, "optimizer_states": [{"state": {0: torch.ones(1)}}], "epoch": 1}
    torch.save({"state_dict": tensors, **known}, path)
    assert SingleFile.open(path, allow_pickle=True, families=SMALL)
    torch.save({"state_dict": tensors, **known, **extra}, path)
    with pytest.raises(CheckpointError, match=rf"1 weight \({next(iter(extra))}\) would not be"):
        SingleFile.open(path, allow_pickle=True, families=SMALL)


@pytest.mark.parametrize(
    ("part", "name", "meaning"),
    [
        ("unet", "class_embedding.linear_1.weight", "class conditioning, such as unCLIP"),
        ("unet", "down_blocks.0.motion_modules.0.norm.weight", "an AnimateDiff"),
        ("unet", "down_blocks.0.attn1.processor.to_k_ip.weight", "an IP-Adapter"),
        ("unet", "controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("unet", "extra.weight", "would not be used by a UNet2DConditionModel"),
        ("vae", "extra.weight", "would not be used by a AutoencoderKL"),
        ("text_encoder", "text_model.encoder.layers.99.mlp.fc1.bias", "would not be used by"),
    ],
)
def test_c3_weights_left_over_in_a_folder(
    part: str, name: str, meaning: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    _copy_with(checkpoint, folder, part, name)
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder).load(part)
    assert meaning in str(error.value) and name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["text_model.embeddings.position_ids", "vision_model.pre_layrnorm.bias", "logit_scale"],
)
def test_c3_what_may_remain_in_a_folder(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """The text encoder of a complete CLIP."""
    folder = tmp_path / "checkpoint"
    _copy_with(checkpoint, folder, "text_encoder", name)
    Checkpoint.open(folder).load("text_encoder")


def _copy_with(checkpoint: Path, folder: Path, part: str, name: str) -> None:
    """A copy of the checkpoint with one weight more in a component."""
    linked_folder(checkpoint, folder)
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path) | {name: torch.ones(2, 2)}
    path.unlink()
    save_file(tensors, path)


def test_c3_guidance_embedding_of_a_latent_consistency_model(tmp_path: Path) -> None:
    """diffusers' conversion forgets this weight; the file is a latent consistency model."""
    family = replace(SD1, unet={**SD1.unet, "time_cond_proj_dim": 16})
    modules = random_modules(family)
    tensors = original_layout(SD1, modules)
    tensors[f"{UNET}time_embed.cond_proj.weight"] = modules["unet"].time_embedding.cond_proj.weight
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, tmp_path / "a.safetensors")
    opened = SingleFile.open(tmp_path / "a.safetensors", families=SMALL)
    assert opened.family.scheduler["_class_name"] == "LCMScheduler"
    loaded, expected = opened.load("unet").state_dict(), modules["unet"].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_c3_documentation_lists_what_may_remain() -> None:
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text(encoding="utf-8")
    assert [reason for _, reason in MAY_REMAIN if reason not in page.replace("`", "")] == []


@file_kind(
    "checkpoint",
    "pruned UNet in one file (SSD-1B, Segmind Vega)",
    recognised="whole layers of the UNet are missing",
    result="rejected",
    says="it may be a pruned model",
)
def test_c3_pruned_unet(says: str, tmp_path: Path) -> None:
    tensors = original_layout(SDXL, random_modules(SDXL))
    kept = {k: v for k, v in tensors.items() if ".transformer_blocks.1." not in k}
    save_file(kept, tmp_path / "model.safetensors")
    fails(tmp_path / "model.safetensors", says)


def test_c3_names_with_line_breaks_stay_on_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fails(write(tmp_path, SD1, "a\nb" * 50), "1 weight (a b")
    tensors = original_layout(SD1, random_modules(SD1))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"x\ny": ""})
    SingleFile.open(tmp_path / "model.safetensors", families=SMALL)
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_c3_state_in_the_only_entry_of_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"model": original_layout(SD1, random_modules(SD1))}, path)
    SingleFile.open(path, allow_pickle=True, families=SMALL)
