"""Small random ControlNets for the checkpoints of tests.helpers.families."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image

from tests.helpers.original_layout import unet_layout

EMBEDDING = (4, 8, 8, 16)
"""Channels of the embedding of the control image; it halves three times."""


def random_controlnet(checkpoint: Path, seed: int = 0, **config: Any) -> Any:
    """A ControlNet for the UNet of a checkpoint, whose residuals change the image.

    Args:
      config: settings that differ from the UNet's.
    """
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    settings = {"conditioning_embedding_out_channels": EMBEDDING, **config}
    latents = {"in_channels": unet.config.out_channels}
    base = dict(ControlNetModel.from_unet(unet, load_weights_from_unet=False).config)
    base = {key: value for key, value in base.items() if not key.startswith("_")}
    model = ControlNetModel(**{**base, **latents, **settings})
    strengthen(model)
    return model.eval()


def strengthen(model: Any) -> None:
    """Give the layers weights that are initialised with zeros, or too small to count."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid")):
                weight.normal_(std=0.3)  # they are initialised with zeros
            elif name.startswith("controlnet_cond_embedding") and weight.ndim > 1:
                gain = 2 if "conv_out" in name else 1.4  # so that what the image shows counts
                weight.normal_(std=gain / weight[0].numel() ** 0.5)


def build_controlnet(checkpoint: Path, folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write the folder of a random ControlNet."""
    random_controlnet(checkpoint, seed, **config).save_pretrained(folder)
    return folder


def control_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random blocks of colours with sharp edges."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def original_layout_of(net: Any) -> dict[str, torch.Tensor]:
    """The weights of a ControlNet, named as in the file of its authors."""
    shell = SimpleNamespace(
        time_embedding=net.time_embedding,
        add_embedding=getattr(net, "add_embedding", None),
        conv_in=net.conv_in,
        down_blocks=net.down_blocks,
        mid_block=net.mid_block,
        up_blocks=(),
        conv_norm_out=torch.nn.Identity(),
        conv_out=torch.nn.Identity(),
    )
    out = unet_layout(shell)
    embedding = net.controlnet_cond_embedding
    hints = [embedding.conv_in, *embedding.blocks, embedding.conv_out]
    modules = {f"input_hint_block.{2 * i}": hint for i, hint in enumerate(hints)}
    modules |= {f"zero_convs.{i}.0": conv for i, conv in enumerate(net.controlnet_down_blocks)}
    modules["middle_block_out.0"] = net.controlnet_mid_block
    for prefix, module in modules.items():
        out |= {f"{prefix}.{key}": value for key, value in module.state_dict().items()}
    return {f"control_model.{k}": v.detach().contiguous().clone() for k, v in out.items()}
