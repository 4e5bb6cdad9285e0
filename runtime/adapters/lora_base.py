"""Which model a LoRA is made for, by the names of its weights, their widths and its header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SD1, SD2, SDXL = "Stable Diffusion 1", "Stable Diffusion 2", "Stable Diffusion XL"
SD1_OR_2, REFINER = "Stable Diffusion 1 or 2", "Stable Diffusion XL refiner"
SDXL_OR_REFINER = "Stable Diffusion XL or its refiner"
_MEANS = {SD1_OR_2: {SD1, SD2}, SDXL_OR_REFINER: {SDXL, REFINER}}
_WIDTHS = {768: SD1, 1024: SD2, 2048: SDXL, 1280: REFINER}
"""Width of the text encoders' output, which cross-attention takes."""
_HEADERS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(sdxl|stable-diffusion-xl)", SDXL),
        (r"^(sd_v2|sd_2|stable-diffusion-v2)", SD2),
        (r"^(sd_v1|sd_1|stable-diffusion-v1)", SD1),
        (r"^(sd3|stable-diffusion-3)", "Stable Diffusion 3"),
        (r"^flux", "Flux"),
        (r"^wan", "Wan"),
        (r"^hunyuan", "Hunyuan"),
        (r"^qwen", "Qwen-Image"),
        (
            r"^(lumina|chroma|zimage|z-image|kandinsky|hidream|pixart|cogvideo|ltx|mochi|auraflow)",
            "",
        ),
    )
)
_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"lora_prior_unet_|^prior\.", "Stable Cascade"),
        (r"joint_blocks_\d+_(context|x)_block", "Stable Diffusion 3"),
        (r"double_stream_blocks_|single_stream_blocks_", "HiDream"),
        (r"double_layers_\d|joint_transformer_blocks_\d", "AuraFlow"),
        (r"(img|txt)_attn_(qkv|q|proj)|double_blocks_\d|single_blocks_\d", "Flux or HunyuanVideo"),
        (r"single_transformer_blocks_\d", "Flux"),
        (r"transformer_blocks_\d+_(img|txt)_m(lp|od)", "Qwen-Image"),
        (r"transformer_blocks_\d+_attn_", "Stable Diffusion 3 or Flux"),
        (r"(^|_)blocks_\d+_(self_attn|cross_attn|ffn)_", "Wan"),
        (r"^transformer_(transformer_)?blocks_\d+_attn\d_", "a diffusion transformer"),
        (r"(^|_)blocks_\d+_attn\d?_", "Hunyuan-DiT or another diffusion transformer"),
        (r"(^|_)layers_\d+_(attention|feed_forward)_", "Lumina or Z-Image"),
    )
)
_TEXT_LAYER = re.compile(r"text_model|lora_te|text_encoder|clip_[lg]")
_DEEP = re.compile(r"(attentions_\d+|blocks?_(\d+_)?1)_transformer_blocks_[1-9]")
_SECOND = re.compile(r"lora_te2_|text_encoder_2_|clip_g_")
_OUTER = re.compile(r"down_blocks_0_attentions|up_blocks_3_(attentions|resnets)|down_blocks_3_")
_CROSS = re.compile(r"_attn2_(processor_)?to_[kv]_?(lora)?$")


def model_of_names(names: Iterable[str]) -> str | None:
    """The model by the names of its layers alone; None if they do not say.

    Returns: one of the constants of this module, or the name of a model without a UNet.
    """
    flat = [name.replace(".", "_") for name in names]
    layers = [name for name in flat if not _TEXT_LAYER.search(name)]
    if not any("attentions_" in n or ("_blocks_" in n and "attn2" in n) for n in layers):
        for pattern, model in _NAMES:
            if any(map(pattern.search, layers)):
                return model
    if any(map(_SECOND.search, flat)):
        return SDXL
    if any(map(_DEEP.search, layers)):
        return SDXL_OR_REFINER
    return SD1_OR_2 if any(map(_OUTER.search, layers)) else None


def model_of_widths(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The model by the input width of its cross-attention.

    Args:
      shapes: of the LoRA's first matrices, by the layer's name as the file spells it.
    """
    for layer, shape in shapes.items():
        if _CROSS.search(layer.replace(".", "_")) and len(shape) >= 2:
            return _WIDTHS.get(shape[1])
    return None


def model_of_header(metadata: Mapping[str, str]) -> str | None:
    """The model that the file's header names."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        value = str(metadata.get(key, "")).lower()
        for pattern, name in _HEADERS:
            if pattern.search(value):
                return name or value.split("/")[0]
    return SD2 if str(metadata.get("ss_v2", "")).lower() == "true" else None


def model_of_modules(modules: Mapping[str, Any]) -> str | None:
    """The model of a checkpoint's UNet and text encoders."""
    unet = modules["unet"].config if "unet" in modules else None
    width = getattr(unet, "cross_attention_dim", 0)
    if getattr(unet, "addition_embed_type", None) == "text_time":
        is_base = "text_encoder" in modules
        return SDXL if is_base else _WIDTHS.get(width, SDXL_OR_REFINER)
    return _WIDTHS.get(width, SD1_OR_2) if unet is not None else None


def differ(one: str | None, other: str | None) -> bool:
    """Whether two models are certainly not the same."""
    if one is None or other is None:
        return False
    return _MEANS.get(one, {one}).isdisjoint(_MEANS.get(other, {other}))
