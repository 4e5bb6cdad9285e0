"""The graphs of a ControlNet as PyTorch modules, and their inputs and outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sdexport.engines import TensorSpec
from sdexport.graphs.controlnet_union_parts import (
    UnionEmbedding,
    after_union_embedding,
    union_inputs,
)
from sdexport.graphs.wrappers import Part, with_parameters
from sdexport.runtime.models.components import (
    DOWN_RESIDUAL,
    MID_RESIDUAL,
    level_dimensions,
)
from sdexport.runtime.models.conditioning import ConditioningInput
from sdexport.runtime.models.controlnet import (
    CONTROL_EMBEDDING,
    CONTROL_IMAGE,
    CONTROL_TYPE,
    CONTROLNET,
    EMBEDDING,
)
from sdexport.runtime.models.stable_diffusion_xl import POOLED_TEXT, TIME_IDS


class ControlEmbedding(nn.Module):
    """controlnet_cond -> control_embedding, which does not depend on the step."""

    def __init__(self, model: Any, order: str) -> None:
        super().__init__()
        self.embedding = model.controlnet_cond_embedding
        self.is_bgr = order == "bgr"

    def forward(self, controlnet_cond: torch.Tensor) -> torch.Tensor:
        image = torch.flip(controlnet_cond, dims=[1]) if self.is_bgr else controlnet_cond
        result: torch.Tensor = self.embedding(image)
        return result


class ControlNet(nn.Module):
    """sample, timestep, encoder_hidden_states, control_embedding -> the residuals, unscaled.

    A ControlNet-Union takes control_type as well.
    """

    def __init__(self, model: Any, conditioning: Sequence[ConditioningInput]) -> None:
        super().__init__()
        self.model, self.pools = _after_embedding(model), model.config.global_pool_conditions
        self.added = [each.name for each in conditioning]
        self.is_union = is_union(model.config)
        types = [CONTROL_TYPE] if self.is_union else []
        self.forward = with_parameters(
            self._forward,
            ["sample", "timestep", "encoder_hidden_states", EMBEDDING, *types, *self.added],
        )

    def _forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        control_embedding: torch.Tensor,
        **added: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        control: dict[str, Any] = {"controlnet_cond": control_embedding}
        if self.is_union:
            control = {
                "controlnet_cond": [control_embedding],
                "control_type": added.pop(CONTROL_TYPE),
                "control_type_idx": [0],  # any: it counts in the embedding alone
            }
        down, mid = self.model(
            sample,
            timestep,
            encoder_hidden_states,
            **control,
            added_cond_kwargs=added or None,
            return_dict=False,
        )
        residuals = (*down, mid)
        if self.pools:
            return tuple(r.mean(dim=(2, 3), keepdim=True).expand_as(r) for r in residuals)
        return residuals


def _after_embedding(model: Any) -> Any:
    """The model as it is after the embedding of the control image, with the same weights."""
    if is_union(model.config):
        rest = after_union_embedding(model)
    else:
        rest = copy.copy(model)
        rest._modules = {**model._modules, "controlnet_cond_embedding": nn.Identity()}
    rest.register_to_config(
        global_pool_conditions=False, controlnet_conditioning_channel_order="rgb"
    )
    return rest


def is_union(config: Any) -> bool:
    """Whether a configuration of a ControlNet is that of a ControlNet-Union."""
    return getattr(config, "num_control_type", None) is not None


def controlnet_parts(config: SimpleNamespace) -> tuple[Part, ...]:
    """The graphs of a ControlNet with this configuration, in the order in which they run."""
    conditioning = (POOLED_TEXT, TIME_IDS) if config.addition_embed_type == "text_time" else ()
    space = level_dimensions(0)
    embedding = TensorSpec(EMBEDDING, "float32", ("batch", config.block_out_channels[0], *space))
    image = TensorSpec(
        CONTROL_IMAGE,
        "float32",
        ("batch", config.conditioning_channels, "image_height", "image_width"),
    )
    of_image: tuple[TensorSpec, ...] = (image,)
    types: tuple[TensorSpec, ...] = ()
    order = config.controlnet_conditioning_channel_order
    wrap: Callable[[Any], nn.Module] = partial(ControlEmbedding, order=order)
    if is_union(config):
        further, type_spec = union_inputs(config)
        of_image, types, wrap = (image, *further), (type_spec,), UnionEmbedding
    inputs = (
        TensorSpec("sample", "float32", ("batch", config.in_channels, *space)),
        TensorSpec("timestep", "float32", (1,)),
        TensorSpec(
            "encoder_hidden_states", "float32", ("batch", "sequence", config.cross_attention_dim)
        ),
        embedding,
        *types,
        *added_inputs(config),
    )
    return (
        Part(CONTROL_EMBEDDING, wrap, of_image, (embedding,)),
        Part(
            CONTROLNET,
            partial(ControlNet, conditioning=conditioning),
            inputs,
            residual_specs(config),
            conditioning,
        ),
    )


def residual_specs(config: SimpleNamespace) -> tuple[TensorSpec, ...]:
    """What a ControlNet gives, and a UNet takes, for a configuration of either.

    One for each skip connection, from the first one on, and one for the middle block.
    """
    found = [(config.block_out_channels[0], 0)]
    for level, channels in enumerate(config.block_out_channels):
        found += [(channels, level)] * _layers(config, level)
        if level + 1 < len(config.block_out_channels):
            found.append((channels, level + 1))
    named = [(f"{DOWN_RESIDUAL}{i}", *each) for i, each in enumerate(found)]
    named.append((MID_RESIDUAL, config.block_out_channels[-1], found[-1][1]))
    return tuple(
        TensorSpec(name, "float32", ("batch", channels, *level_dimensions(level)))
        for name, channels, level in named
    )


def _layers(config: SimpleNamespace, level: int) -> int:
    layers = config.layers_per_block
    return int(layers if isinstance(layers, int) else layers[level])


def added_inputs(config: SimpleNamespace) -> tuple[TensorSpec, ...]:
    """The inputs of SDXL's conditioning, for a configuration of a ControlNet or a UNet.

    The pooled embeddings are as wide as what the projection takes besides the six numbers.
    """
    if config.addition_embed_type != "text_time":
        return ()
    numbers = 6
    width = config.projection_class_embeddings_input_dim
    pooled = width - numbers * config.addition_time_embed_dim
    return (
        TensorSpec(POOLED_TEXT.name, "float32", ("batch", pooled)),
        TensorSpec(TIME_IDS.name, "float32", ("batch", numbers)),
    )
