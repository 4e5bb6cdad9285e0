"""The inverse of the converters: modules of diffusers written in the original layout, by hand.

Also small families: the published architectures with narrow layers and random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
import transformers

from sdexport.checkpoints.published_configs import FAMILIES, SingleFileFamily
from sdexport.checkpoints.single_file import SingleFile

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 597}
_SPECIALS = {"bos_token_id": 595, "eos_token_id": 596, "pad_token_id": 596}
_VAE = {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "layers_per_block": 1}
_UNETS = {
    "Stable Diffusion 1": {
        "block_out_channels": [16, 16, 32, 32],
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    },
    "Stable Diffusion 2": {
        "block_out_channels": [16, 16, 32, 32],
        "cross_attention_dim": 32,
        "attention_head_dim": [2, 2, 4, 4],
    },
    "Stable Diffusion XL": {
        "block_out_channels": [16, 16, 32],
        "cross_attention_dim": 72,
        "attention_head_dim": [2, 2, 4],
        "transformer_layers_per_block": [1, 1, 2],
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 40,
    },
    "Stable Diffusion XL refiner": {
        "block_out_channels": [16, 16, 32, 32],
        "cross_attention_dim": 40,
        "attention_head_dim": [2, 2, 4, 4],
        "transformer_layers_per_block": 2,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 5 * 8 + 40,
    },
}


def small(family: SingleFileFamily) -> SingleFileFamily:
    """The same architecture, a few thousand weights."""
    layouts = {}
    for part, layout in family.text_encoders.items():
        config = {**layout.config, **_TEXT, **_SPECIALS, "num_hidden_layers": 2}
        config["projection_dim"] = 32
        if layout.projected:
            config |= {"hidden_size": 40, "projection_dim": 40}
        layouts[part] = replace(layout, config=config)
    unet = {**family.unet, **_UNETS[family.name], "norm_num_groups": 8, "layers_per_block": 2}
    return replace(family, text_encoders=layouts, unet=unet, vae={**family.vae, **_VAE})


SMALL = tuple(map(small, FAMILIES))


def use_families(monkeypatch: pytest.MonkeyPatch, families: tuple[SingleFileFamily, ...]) -> None:
    """Let single files be of these families, and not of the published ones."""
    original = SingleFile.open.__func__  # type: ignore[attr-defined]

    def open_small(cls: Any, path: Any, **options: Any) -> Any:
        return original(cls, path, **options, families=families)

    monkeypatch.setattr(SingleFile, "open", classmethod(open_small))


_made: dict[str, dict[str, Any]] = {}


def random_modules(family: SingleFileFamily, seed: int = 0) -> dict[str, Any]:
    """A module of diffusers or transformers for every part, which must not be changed."""
    key = repr((family, seed))
    if key not in _made:
        _made[key] = _random_modules(family, seed)
    return dict(_made[key])


def _random_modules(family: SingleFileFamily, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    modules: dict[str, Any] = {
        part: getattr(transformers, layout.class_name)(
            transformers.CLIPTextConfig(**layout.config)
        ).eval()
        for part, layout in family.text_encoders.items()
    }
    modules["unet"] = diffusers.UNet2DConditionModel(**family.unet).eval()
    modules["vae"] = diffusers.AutoencoderKL(**family.vae).eval()
    for module in modules.values():
        for weight in module.parameters():
            weight.data += 0.02 * torch.randn_like(weight)  # biases and norms are no constants
    return modules


def original_layout(
    family: SingleFileFamily, modules: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The weights of all parts, named as in a single file."""
    tensors = {f"model.diffusion_model.{k}": v for k, v in unet_layout(modules["unet"]).items()}
    if "vae" in modules:
        tensors |= {f"first_stage_model.{k}": v for k, v in vae_layout(modules["vae"]).items()}
    for part, layout in family.text_encoders.items():
        write = openclip_layout if layout.openclip else clip_layout
        tensors |= {f"{layout.prefix}{k}": v for k, v in write(modules[part]).items()}
    return {k: v.detach().contiguous().clone() for k, v in tensors.items()}


def _put(out: dict[str, torch.Tensor], prefix: str, module: Any, names: Mapping[str, str]) -> None:
    for key, value in module.state_dict().items():
        first = next((n for n in names if key.startswith(n)), None)
        name = key if first is None else names[first] + key[len(first) :]
        out[f"{prefix}.{name}" if prefix else name] = value


def unet_layout(unet: Any) -> dict[str, torch.Tensor]:
    """Blocks have consecutive numbers: each resnet with its attention, each downsampler."""
    out: dict[str, torch.Tensor] = {}
    linears = {"linear_1": "0", "linear_2": "2"}
    _put(out, "time_embed", unet.time_embedding, linears)
    if getattr(unet, "add_embedding", None) is not None:
        _put(out, "label_emb.0", unet.add_embedding, linears)
    _put(out, "input_blocks.0.0", unet.conv_in, {})
    number = 1
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", None)
        for i, resnet in enumerate(block.resnets):
            _put(out, f"input_blocks.{number}.0", resnet, _RESNET)
            if attentions:
                _put(out, f"input_blocks.{number}.1", attentions[i], {})
            number += 1
        for sampler in block.downsamplers or ():
            _put(out, f"input_blocks.{number}.0", sampler, {"conv": "op"})
            number += 1
    _put(out, "middle_block.0", unet.mid_block.resnets[0], _RESNET)
    _put(out, "middle_block.1", unet.mid_block.attentions[0], {})
    _put(out, "middle_block.2", unet.mid_block.resnets[1], _RESNET)
    number = 0
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", None)
        for i, resnet in enumerate(block.resnets):
            _put(out, f"output_blocks.{number}.0", resnet, _RESNET)
            if attentions:
                _put(out, f"output_blocks.{number}.1", attentions[i], {})
            if block.upsamplers and i == len(block.resnets) - 1:
                place = 2 if attentions else 1
                _put(out, f"output_blocks.{number}.{place}", block.upsamplers[0], {})
            number += 1
    _put(out, "out.0", unet.conv_norm_out, {})
    _put(out, "out.2", unet.conv_out, {})
    return out


def vae_layout(vae: Any) -> dict[str, torch.Tensor]:
    """Attention is a convolution of width 1; the decoder's blocks are counted from the output."""
    out: dict[str, torch.Tensor] = {}
    for side in ("encoder", "decoder"):
        half = getattr(vae, side)
        shortcut = {"conv_shortcut": "nin_shortcut"}
        blocks = half.down_blocks if side == "encoder" else half.up_blocks[::-1]
        for i, block in enumerate(blocks):
            way, sampler = ("down", "downsample") if side == "encoder" else ("up", "upsample")
            for j, resnet in enumerate(block.resnets):
                _put(out, f"{side}.{way}.{i}.block.{j}", resnet, shortcut)
            for module in getattr(block, f"{sampler}rs") or ():
                _put(out, f"{side}.{way}.{i}.{sampler}", module, {})
        _put(out, f"{side}.mid.block_1", half.mid_block.resnets[0], shortcut)
        _put(out, f"{side}.mid.block_2", half.mid_block.resnets[1], shortcut)
        attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}
        attention["to_out.0"] = "proj_out"
        _put(out, f"{side}.mid.attn_1", half.mid_block.attentions[0], attention)
        for name in ("q", "k", "v", "proj_out"):
            key = f"{side}.mid.attn_1.{name}.weight"
            out[key] = out[key][:, :, None, None]
        _put(out, f"{side}.norm_out", half.conv_norm_out, {})
        for name in ("conv_in", "conv_out"):
            _put(out, f"{side}.{name}", getattr(half, name), {})
    for name in ("quant_conv", "post_quant_conv"):
        _put(out, name, getattr(vae, name), {})
    return out


def clip_layout(encoder: Any) -> dict[str, torch.Tensor]:
    """transformers' own names, as they were before its version 5."""
    out = {
        f"text_model.{k.removeprefix('text_model.')}": v for k, v in encoder.state_dict().items()
    }
    return out | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def openclip_layout(encoder: Any) -> dict[str, torch.Tensor]:
    """One matrix for query, key and value; files of SD 2 have one layer more than is used."""
    old = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
    width, count = encoder.config.hidden_size, encoder.config.num_hidden_layers
    out = {
        "token_embedding.weight": old["embeddings.token_embedding.weight"],
        "positional_embedding": old["embeddings.position_embedding.weight"],
        "logit_scale": torch.tensor(4.6),
        "text_projection": old.get("text_projection.weight", torch.randn(width, width)).T,
    }
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = old[f"final_layer_norm.{kind}"]
        for i in range(count + ("text_projection.weight" not in old)):
            layer = f"encoder.layers.{min(i, count - 1)}"
            block = f"transformer.resblocks.{i}"
            parts = [old[f"{layer}.self_attn.{n}_proj.{kind}"] for n in "qkv"]
            out[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
            out[f"{block}.attn.out_proj.{kind}"] = old[f"{layer}.self_attn.out_proj.{kind}"]
            for new, name in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                out[f"{block}.{new}.{kind}"] = old[f"{layer}.{name}.{kind}"]
            for new, name in (("c_fc", "fc1"), ("c_proj", "fc2")):
                out[f"{block}.mlp.{new}.{kind}"] = old[f"{layer}.mlp.{name}.{kind}"]
    return out
