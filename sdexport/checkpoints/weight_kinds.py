"""Recognising what a file holds: by its first bytes, or by the names of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from sdexport.engines.messages import one_line, plain

_NAMED = 5
"""Entries that a description lists."""
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GGUF", "a GGUF file, as llama.cpp and stable-diffusion.cpp use"),
    (
        b"version https://git-lfs",
        "a git-LFS pointer, not the file it points to; run 'git lfs pull'",
    ),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
    (b"\x08\x00\x00\x00ONNX", "an ONNX graph"),
)
_LORA = (
    r"lora_(up|down|mid|A|B)\b|\.lora\.(up|down)|_lora\.(up|down)|lora_linear_layer"
    r"|\.(hada_[wt]\d|lokr_[wt]\d|oft_blocks|on_input|[wb]_norm|diff(_b)?\b|dora_scale)"
    r"|^lora_(unet|te\d?)_.*\.[ab][12]\.weight$"
)
# In this order: a whole checkpoint holds a VAE's names too, and may hold a ControlNet's.
_KINDS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"^model\.diffusion_model\.input_blocks\.", "a Stable Diffusion checkpoint"),
        (_LORA, "a LoRA"),
        (r"(^|\.)double_blocks\.\d+\.img_", "a Flux model"),
        (
            r"(^|\.)(joint_blocks\.\d+|transformer_blocks\.\d+\.ff_context)\.",
            "an SD 3 or Flux model",
        ),
        (r"^(control_model|controlnet_\w+)\.", "a ControlNet"),
        (r"motion_modules\.", "an AnimateDiff motion module"),
        (r"^(image_proj|ip_adapter)\.", "an IP-Adapter"),
        (r"^model\.diffusion_model\.", "a diffusion model of another family"),
        (
            r"(^|\.)resblocks\.\d+\.(attn|ln_1|mlp)\."
            r"|^encoder\.layers\.\d+\.(self_attn|layer_norm1|mlp)\.",
            "a CLIP text encoder",
        ),
        (
            r"^((base_)?model\.)*(layers\.\d+\.(self_attn|attention|mlp)|embed_tokens|h\.\d+)\."
            r"|^(transformer|gpt_neox)\.|^lm_head\.|^blk\.\d+\.",
            "a language model",
        ),
        (r"^(encoder|decoder)\.block\.\d+\.layer\.", "a T5 text encoder"),
        (r"^(string_to_param|emb_params|clip_[lg])$", "a textual-inversion embedding"),
        (r"^input_blocks\.\d+\.", "a UNet alone in the original layout"),
        (r"^(unet\.)?(down_blocks|up_blocks)\.\d+\.", "a UNet alone in diffusers' layout"),
        (r"^(encoder|decoder)\.(conv_in|down|up|mid|layers)\b|^decoder\.\d+\.", "a VAE"),
        (r"^(vae|first_stage_model)\.", "a VAE"),
        (r"^((taesd_)?(en|de)coder\.)?\d+\.(conv\.\d\.)?(weight|bias)$", "a VAE"),
        (r"text_model\.|resblocks\.\d+\.", "a CLIP text encoder"),
    )
)


def kind_of_weights(names: Iterable[object], tensors: Mapping[str, torch.Tensor]) -> str:
    """A short description such as "a LoRA".

    Args:
      names: everything that the file holds. tensors: the weights among it.
    """
    listed = [*tensors, *map(str, names)]
    for pattern, kind in _KINDS:
        if any(map(pattern.search, listed)):
            return kind
    if len(tensors) == 1 and all(value.ndim <= 2 for value in tensors.values()):
        return "a textual-inversion embedding"
    if not tensors:
        entries = ", ".join(one_line(name, 20) for name in listed[:_NAMED])
        more = ", ..." if len(listed) > _NAMED else ""
        return "a file without weights" + (f" by name, only {entries}{more}" if listed else "")
    return f"a file of {len(tensors)} unknown weights such as {plain(min(tensors))}"


def kind_of_other_file(head: bytes) -> str | None:
    """A short description of a file that holds no weights at all; None if it may hold some.

    Args:
      head: its first bytes, some hundred.
    """
    kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "a web page, perhaps an error or a login page saved under this name; download it again"
        )
    return "a JSON text" if start.startswith((b"{", b"[")) else kind
