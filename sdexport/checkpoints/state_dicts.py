"""Weights under the names that the modules of today's diffusers and transformers have.

Sources are the original layout of CompVis and Stability, and older versions of both libraries. The
original layout is translated by diffusers' own converters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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

_GUIDANCE_EMBEDDING = "time_embed.cond_proj.weight", "time_embedding.cond_proj.weight"
"""A weight of latent consistency models, which diffusers does not translate."""

Tensors = Mapping[str, torch.Tensor]


def vae_state(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a VAE, from a whole checkpoint or a file of its own, in either layout."""
    found = _below(tensors, vae_prefix(tensors))
    if any(name.startswith("encoder.down_blocks.") for name in found):
        return {_new_attention_name(name): _linear(name, value) for name, value in found.items()}
    starts = ("encoder.", "decoder.", "quant", "post")
    found = {name: value for name, value in found.items() if name.startswith(starts)}
    return _present(convert_ldm_vae_checkpoint(found, dict(config)))


def vae_prefix(names: Iterable[str]) -> str:
    """What the names of a VAE's weights begin with; empty for a file of its own."""
    listed = list(names)
    starts = (VAE_PREFIX, "vae.")
    return next((start for start in starts if any(n.startswith(start) for n in listed)), "")


def unet_state(
    tensors: Tensors, config: Mapping[str, Any], *, ema: bool
) -> dict[str, torch.Tensor]:
    """The weights of the UNet of a whole checkpoint in the original layout.

    Args:
      ema: take the averaged weights.
    """
    names = [name for name in tensors if name.startswith(UNET_PREFIX)]
    source: Callable[[str], str] = ema_name if ema else str
    found = {name: tensors[source(name)] for name in names if source(name) in tensors}
    state = _present(convert_ldm_unet_checkpoint(found, dict(config)))
    embedding = found.get(f"{UNET_PREFIX}{_GUIDANCE_EMBEDDING[0]}")
    return state | ({} if embedding is None else {_GUIDANCE_EMBEDDING[1]: embedding})


def original_text_state(tensors: Tensors, layout: TextLayout) -> dict[str, torch.Tensor]:
    """The weights of a text encoder of a whole checkpoint in the original layout."""
    if not layout.openclip:
        return text_state(_below(tensors, layout.prefix), layout.class_name)
    names = {name: tensors[name] for name in tensors if name.startswith(layout.prefix)}
    model = SimpleNamespace(config=SimpleNamespace(**layout.config))
    found = _present(convert_open_clip_checkpoint(model, names, prefix=layout.prefix))
    return text_state(found, layout.class_name)


def text_state(tensors: Tensors, class_name: str) -> dict[str, torch.Tensor]:
    """The weights of a text encoder that older versions of transformers named differently."""
    bare = {k.removeprefix("text_model."): v for k, v in tensors.items()}
    if class_name == "CLIPTextModel":
        return bare
    return {k if k == "text_projection.weight" else f"text_model.{k}": v for k, v in bare.items()}


def safety_checker_state(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The weights of a safety checker, whose vision model older versions nested twice."""
    start = "vision_model."
    return {k.replace(start + start, start, 1): v for k, v in tensors.items()}


def _present(converted: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """What diffusers found; it gives None for some of the weights that are missing."""
    return {name: value for name, value in converted.items() if value is not None}


def _below(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """The weights under a prefix, by their names without it; no others are read."""
    return {k.removeprefix(prefix): tensors[k] for k in tensors if k.startswith(prefix)}


def ema_name(name: str) -> str:
    """The name of the averaged copy of a weight: without dots, under a prefix of its own."""
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
