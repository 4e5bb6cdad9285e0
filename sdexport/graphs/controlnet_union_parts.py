"""The graphs of a ControlNet-Union as PyTorch modules, and their inputs and outputs.

diffusers computes in each step what a control image and its type add to the first layer. It does
not depend on the step, so here it is computed once, by the graph of the control image.

Source: diffusers, models/controlnets/controlnet_union.py.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sdexport.engines import TensorSpec
from sdexport.runtime.models.controlnet import CONDITIONING_SCALE, CONTROL_TYPE


class UnionEmbedding(nn.Module):
    """controlnet_cond, control_type, conditioning_scale -> control_embedding.

    The attention is between the images of the batch, as in diffusers, whose layers take the batch
    for the sequence.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embedding = model.controlnet_cond_embedding
        self.task_embedding = model.task_embedding
        self.layers = model.transformer_layes
        self.projection = model.spatial_ch_projs

    def forward(
        self,
        controlnet_cond: torch.Tensor,
        control_type: torch.Tensor,
        conditioning_scale: torch.Tensor,
    ) -> torch.Tensor:
        condition = self.embedding(controlnet_cond)
        task = (control_type[:, :, None] * self.task_embedding).sum(dim=1)
        tokens = (condition.mean(dim=(2, 3)) + task)[:, None] * conditioning_scale
        for layer in self.layers:
            tokens = layer(tokens)
        alpha: torch.Tensor = self.projection(tokens[:, 0])[..., None, None]
        return (condition + alpha) * conditioning_scale


def after_union_embedding(model: Any) -> Any:
    """The model as it is after the embedding of the control images, with the same weights."""
    rest = copy.copy(model)
    rest._modules = {
        **model._modules,
        "controlnet_cond_embedding": nn.Identity(),
        "transformer_layes": nn.ModuleList(),
        "spatial_ch_projs": _Nothing(),
    }
    return rest


class _Nothing(nn.Module):
    """Zero, for any input."""

    zero: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1), persistent=False)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.zero


def union_inputs(config: SimpleNamespace) -> tuple[tuple[TensorSpec, ...], TensorSpec]:
    """Further inputs of the graph of the control image, and that of the network."""
    types = config.num_control_type
    return (
        (
            TensorSpec(CONTROL_TYPE, "float32", (1, types)),
            TensorSpec(CONDITIONING_SCALE, "float32", (1,)),
        ),
        TensorSpec(CONTROL_TYPE, "float32", ("batch", types)),
    )
