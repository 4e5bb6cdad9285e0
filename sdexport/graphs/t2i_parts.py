"""The graph of a T2I-Adapter as a PyTorch module, and its inputs and outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sdexport.engines import TensorSpec
from sdexport.graphs.wrappers import Part
from sdexport.runtime.adapters.t2i_inputs import residual_name, residual_shape
from sdexport.runtime.models.t2i_adapter import CONTROL_IMAGE, T2I_ADAPTER

LATENT_CELL = 8
"""Pixels along one side of a latent cell."""


class T2IAdapter(nn.Module):
    """image -> the features that a UNet adds, unscaled."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model(image))


def t2i_parts(config: SimpleNamespace) -> tuple[Part, ...]:
    """The graph of a T2I-Adapter with this configuration."""
    image = TensorSpec(
        CONTROL_IMAGE, "float32", ("batch", config.in_channels, "image_height", "image_width")
    )
    outputs = tuple(
        TensorSpec(residual_name(i), "float32", residual_shape(channels, level))
        for i, (channels, level) in enumerate(features(config))
    )
    part = Part(T2I_ADAPTER, T2IAdapter, (image,), outputs, multiple=config.downscale_factor)
    return (part,)


def features(config: SimpleNamespace) -> list[tuple[int, int]]:
    """Channels of each feature, and the level of a UNet that has its size."""
    first = (config.downscale_factor // LATENT_CELL).bit_length() - 1
    channels = list(config.channels)
    if config.adapter_type == "full_adapter_xl":
        return [(size, first + (i >= 2)) for i, size in enumerate(channels)]  # halved once
    if config.adapter_type == "light_adapter":
        channels.append(channels[-1])
    return [(size, first + i) for i, size in enumerate(channels)]
