"""Scales of IP-Adapters by block equal those that diffusers sets."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales

from sdexport import InvalidArgumentError
from sdexport.runtime.adapters.ip_scales import scale_of_layers


@pytest.fixture(scope="module")
def unet() -> Any:
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=2,
            transformer_layers_per_block=(1, 2, 1),
        )


def layers_of(unet: Any) -> list[str]:
    return [n.removesuffix(".processor") for n in unet.attn_processors if ".attn2." in n]


@pytest.mark.parametrize(
    "scale",
    [
        0.7,
        {},
        {"up": {"block_0": [0.0, 1.0, 0.0]}},
        {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}},
        {"mid": 0.5},
        {"mid": [0.25], "down": 2, "up": {"block_0": [0.3], "block_1": 0.5}},
        {"down": [0.1, 0.2]},
    ],
)
def test_mappings_are_those_of_diffusers(unet: Any, scale: Any) -> None:
    expanded = _maybe_expand_lora_scales(unet, [scale], default_scale=0.0)[0]
    ours = scale_of_layers("scale", scale, layers_of(unet))
    for layer in layers_of(unet):
        theirs = expanded
        if isinstance(expanded, dict):
            (theirs,) = [value for key, value in expanded.items() if layer.startswith(key)]
        assert ours[layer] == theirs, layer


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (float("nan"), "scale must be -100 to 100, got nan"),
        (1e9, "scale must be -100 to 100"),
        ("strong", "scale must be -100 to 100, got 'strong'"),
        ({"middle": 1}, "no 'middle' with image attention; the model has down, up, mid"),
        ({"down": {"block_0": 1}}, "no 'block_0' with image attention; the model has block_1"),
        ({"down": {"block_1": [1, 2, 3]}}, r"expected 1 or 2 scales for block_1, got 3"),
        ({"mid": {"block_0": 1}}, r"scale\['mid'\] must be a number"),
        ({"up": {"block_0": [1, 2, float("inf")]}}, r"scale\['up'\] must be -100 to 100, got inf"),
        ({"mid": []}, "expected 1 scales for block_0, got 0"),
    ],
)
def test_others_are_rejected(unet: Any, scale: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        scale_of_layers("scale", scale, layers_of(unet))
