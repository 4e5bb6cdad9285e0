"""Small random checkpoints of every family, in ordinary diffusers folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdexport.demo_model import MODEL_DIR

VOCABULARY = 597
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
    | {"steps_offset": 1, **BETAS},
    "v": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
    | {"steps_offset": 1, "prediction_type": "v_prediction", **BETAS},
    "euler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    | {"steps_offset": 1, **BETAS},
    "turbo": {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    | BETAS,
    "lcm": {"_class_name": "LCMScheduler", "clip_sample": False, **BETAS},
}


def _text(
    hidden: int, layers: int, *, projected: bool, act: str = "quick_gelu", heads: int = 4
) -> Any:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        projection_dim=24,
        hidden_act=act,
        bos_token_id=595,
        eos_token_id=596,
        pad_token_id=596,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _unet(width: int, *, channels: int = 4, **options: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=width,
        attention_head_dim=options.pop("heads", 2),
        **options,
    )


def _vae() -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.18215,
    )


def _tiny_vae() -> Any:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


def _added(ids: int) -> dict[str, Any]:
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 8 * ids,
        "use_linear_projection": True,
    }


# family -> pipeline class, scheduler, text encoders, UNet, options of model_index.json
FAMILIES = (
    "sd1",
    "sd2-v",
    "turbo",
    "lcm",
    "inpainting",
    "tiny-vae",
    "sdxl",
    "sdxl-turbo",
    "sdxl-inpainting",
    "refiner",
)


def build(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint of a family with random weights, whose images are not flat."""
    torch.manual_seed(seed)
    xl, refines = family.startswith("sdxl"), family == "refiner"
    inpaints = "inpainting" in family
    modules: dict[str, Any] = {}
    index: dict[str, Any] = {"_diffusers_version": "0.30.0"}
    if xl or refines:
        if xl:
            modules["text_encoder"] = _text(32, 3, projected=False)
        # heads of 16: TensorRT-RTX 1.7 fails to build a text encoder in half with heads of 12
        modules["text_encoder_2"] = _text(48, 3, projected=True, act="gelu", heads=3)
        width = 80 if xl else 48
        index["force_zeros_for_empty_prompt"] = xl
        if refines:
            index["requires_aesthetics_score"] = True
        options = _added(5 if refines else 6)
    else:
        modern = family in ("sd2-v", "turbo")
        modules["text_encoder"] = _text(
            32, 3, projected=False, act="gelu" if modern else "quick_gelu"
        )
        width = 32
        options = {"use_linear_projection": True, "heads": (2, 4)} if modern else {}
    if family == "lcm":
        options["time_cond_proj_dim"] = 16
    modules["unet"] = _unet(width, channels=9 if inpaints else 4, **options)
    modules["vae"] = _tiny_vae() if family == "tiny-vae" else _vae()
    kind = "StableDiffusionXL" if xl or refines else "StableDiffusion"
    kind += "Inpaint" if inpaints else "Img2Img" if refines else ""
    index["_class_name"] = (
        "LatentConsistencyModelPipeline" if family == "lcm" else f"{kind}Pipeline"
    )
    for name, module in modules.items():
        enliven(name, module)
        module.save_pretrained(folder / name)
        index[name] = [type(module).__module__.split(".")[0], type(module).__name__]
    if refines:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    for name in list(modules):
        if name.startswith("text_encoder"):
            where = name.replace("text_encoder", "tokenizer")
            index[where] = ["transformers", "CLIPTokenizer"]
            _tokenizer(folder / where, exclamation=name.endswith("2") or family == "sd2-v")
    if not (xl or refines):
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    else:
        index |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
    choice = {"sd2-v": "v", "turbo": "turbo", "sdxl-turbo": "turbo", "lcm": "lcm"}
    scheduler = SCHEDULERS[choice.get(family, "euler" if xl or refines else "ddim")]
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def enliven(name: str, module: Any) -> None:
    """Enlarge weights that are initialised so small that mistakes would not show."""
    with torch.no_grad():
        for key, weight in module.named_parameters():
            if weight.ndim > 1 and name.startswith("text_encoder"):
                weight.normal_(std=0.2)
            elif weight.ndim == 1 and "norm" in key and key.endswith("bias"):
                weight.normal_(std=0.1)


def _tokenizer(folder: Path, *, exclamation: bool) -> None:
    shutil.copytree(MODEL_DIR / "tokenizer", folder)
    if exclamation:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
        mapping = folder / "special_tokens_map.json"
        if mapping.exists():
            mapping.write_text(json.dumps(json.loads(mapping.read_text()) | {"pad_token": "!"}))
