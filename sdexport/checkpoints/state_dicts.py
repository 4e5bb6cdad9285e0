"""Weights under the names that the modules of today's diffusers and transformers have.

Sources are the original layout of CompVis and Stability, and older versions of both libraries. The
original layout is translated by diffusers' own converters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from sdexport.checkpoints.published_configs import TextLayout

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
EMA_PREFIX = "model_ema."
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Tensors = Mapping[str, torch.Tensor]


def vae_state(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a VAE, from a whole checkpoint or a file of its own, in either layout."""
    names = {k.removeprefix(VAE_PREFIX).removeprefix("vae."): v for k, v in tensors.items()}
    if any(name.startswith("encoder.down_blocks.") for name in names):
        return {_new_attention_name(name): _linear(name, value) for name, value in names.items()}
    starts = ("encoder.", "decoder.", "quant", "post")
    found = {name: value for name, value in names.items() if name.startswith(starts)}
    return dict(convert_ldm_vae_checkpoint(found, dict(config)))


def unet_state(
    tensors: Tensors, config: Mapping[str, Any], *, ema: bool
) -> dict[str, torch.Tensor]:
    """The weights of the UNet of a whole checkpoint in the original layout.

    Args:
      ema: take the averaged weights.
    """
    names = [name for name in tensors if name.startswith(UNET_PREFIX)]
    source: Callable[[str], str] = _ema_name if ema else str
    found = {name: tensors[source(name)] for name in names if source(name) in tensors}
    return dict(convert_ldm_unet_checkpoint(found, dict(config)))


def original_text_state(tensors: Tensors, layout: TextLayout) -> dict[str, torch.Tensor]:
    """The weights of a text encoder of a whole checkpoint in the original layout."""
    names = {k: v for k, v in tensors.items() if k.startswith(layout.prefix)}
    if layout.openclip:
        model = SimpleNamespace(config=SimpleNamespace(**layout.config))
        found = convert_open_clip_checkpoint(model, names, prefix=layout.prefix)
    else:
        found = {k.removeprefix(layout.prefix): v for k, v in names.items()}
    return text_state(found, layout.class_name)


def text_state(tensors: Tensors, class_name: str) -> dict[str, torch.Tensor]:
    """The weights of a text encoder that older versions of transformers named differently."""
    bare = {k.removeprefix("text_model."): v for k, v in tensors.items()}
    if class_name == "CLIPTextModel":
        return bare
    return {k if k == "text_projection.weight" else f"text_model.{k}": v for k, v in bare.items()}


def _ema_name(name: str) -> str:
    """Averaged weights are stored under the name without its dots."""
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")


def _new_attention_name(name: str) -> str:
    """diffusers renamed these layers; older files such as sd-vae-ft-mse have the old names."""
    for old, new in _OLD_ATTENTION.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _linear(name: str, value: torch.Tensor) -> torch.Tensor:
    """Attention layers that were 1x1 convolutions are linear layers today."""
    is_convolution = ".attentions." in name and value.ndim == 4
    return value[:, :, 0, 0] if is_convolution else value
