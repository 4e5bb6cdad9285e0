"""The graphs of an IP-Adapter as PyTorch modules, and their inputs and outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sdexport.engines import TensorSpec
from sdexport.graphs.wrappers import Part
from sdexport.runtime.models.ip_adapter import (
    FEATURES,
    IMAGE_ENCODER,
    IMAGE_PROJECTION,
    IMAGE_TOKENS,
    PIXELS,
    key_name,
    value_name,
)


class ImageEmbedding(nn.Module):
    """pixel_values -> the image's projected embedding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(pixel_values).image_embeds
        return result


class HiddenStates(ImageEmbedding):
    """pixel_values -> the output of the last layer but one."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(pixel_values, output_hidden_states=True).hidden_states[-2]
        return result


def ip_parts(encoder: SimpleNamespace, projection: SimpleNamespace) -> tuple[Part, ...]:
    """The graphs of an IP-Adapter.

    Args:
      encoder: configuration of the image encoder. projection: see checkpoints.ip_source.
    """
    side = encoder.image_size
    pixels = TensorSpec(PIXELS, "float32", ("batch", encoder.num_channels, side, side))
    places = (side // encoder.patch_size) ** 2 + 1
    shape = (places, encoder.hidden_size) if projection.hidden else (encoder.projection_dim,)
    features = TensorSpec(FEATURES, "float32", ("batch", *shape))
    shape = (projection.tokens, projection.width)
    tokens = TensorSpec(IMAGE_TOKENS, "float32", ("batch", *shape))
    outputs = tuple(
        TensorSpec(name(i), "float32", ("batch", projection.tokens, width))
        for i, width in enumerate(projection.layers)
        for name in (key_name, value_name)
    )
    wrap = HiddenStates if projection.hidden else ImageEmbedding
    return (
        Part(IMAGE_ENCODER, wrap, (pixels,), (features,)),
        Part(IMAGE_PROJECTION, _unchanged, (features,), (tokens, *outputs)),
    )


def _unchanged(module: Any) -> nn.Module:
    result: nn.Module = module
    return result
