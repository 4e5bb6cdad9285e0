"""LoRA files with random weights, in every spelling that trainers use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.helpers.original_layout import unet_layout

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
WIDE = (*ATTENTION, "proj_in", "proj_out", "net.0.proj", "net.2", "fc1", "fc2", "conv1", "conv2")
WIDE += ("conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in")
Pairs = Mapping[str, Mapping[str, tuple[torch.Tensor, torch.Tensor]]]


def random_lora(
    modules: Mapping[str, Any], endings: Iterable[str], *, rank: int = 3, seed: int = 0
) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """(down, up) by part and layer, for all layers whose names have one of the suffixes."""
    generator = torch.Generator().manual_seed(seed)
    pairs: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
    for part, module in modules.items():
        for name, layer in module.named_modules():
            if part == "vae" or not name.endswith(tuple(endings)):
                continue
            if isinstance(layer, nn.Linear | nn.Conv2d):
                tail = layer.weight.shape[2:]
                up = (layer.weight.shape[0], rank, *(1 for _ in tail))
                shapes = (rank, *layer.weight.shape[1:]), up
                down_up = [torch.randn(s, generator=generator) * 0.1 for s in shapes]
                pairs.setdefault(part, {})[name] = (down_up[0], down_up[1])
    return pairs


def original_names(unet: Any) -> dict[str, str]:
    """Names in the original layout of a UNet's layers, matched by their weights."""
    there = {value.data_ptr(): name for name, value in unet_layout(unet).items()}
    return {
        name.removesuffix(".weight"): there[value.data_ptr()].removesuffix(".weight")
        for name, value in unet.state_dict().items()
        if name.endswith(".weight")
    }


def save_kohya(path: Path, pairs: Pairs, alpha: float | None, unet: Any = None) -> Path:
    """Write a file in Kohya's layout; with `unet`, its layers under their original names (SDXL)."""
    names = original_names(unet) if unet is not None else {}
    encoders = {"text_encoder": "lora_te1" if "text_encoder_2" in pairs else "lora_te"}
    encoders["text_encoder_2"] = "lora_te2"
    tensors = {}
    for part, layers in pairs.items():
        for name, (down, up) in layers.items():
            if part == "unet":
                key = f"lora_unet_{names.get(name, name)}".replace(".", "_")
            else:
                key = f"{encoders[part]}_{_text_name(name)}".replace(".", "_")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            if alpha is not None:
                tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def save_peft(path: Path, pairs: Pairs, metadata: dict[str, str] | None = None) -> Path:
    def names(part: str, name: str) -> tuple[str, str]:
        base = f"{part}.{name if part == 'unet' else _text_name(name)}"
        return f"{base}.lora_A.weight", f"{base}.lora_B.weight"

    return _save(path, pairs, names, metadata)


def save_first_diffusers(path: Path, pairs: Pairs) -> Path:
    """Attention processors and linear layers, as diffusers wrote them in 2023."""

    def names(part: str, name: str) -> tuple[str, str]:
        block, _, layer = name.removesuffix(".0").rpartition(".")
        if part == "unet":
            base = f"unet.{block}.processor.{layer}_lora"
        else:
            base = f"{part}.{_text_name(name)}.lora_linear_layer"
        return f"{base}.down.weight", f"{base}.up.weight"

    return _save(path, pairs, names, None)


def _save(
    path: Path,
    pairs: Pairs,
    names: Callable[[str, str], tuple[str, str]],
    metadata: dict[str, str] | None,
) -> Path:
    tensors = {}
    for part, layers in pairs.items():
        for name, matrices in layers.items():
            tensors |= dict(zip(names(part, name), matrices, strict=True))
    save_file(tensors, path, metadata=metadata)
    return path


def _text_name(name: str) -> str:
    return f"text_model.{name.removeprefix('text_model.')}"
