"""The graphs of a ControlNet-XS as PyTorch modules, and their inputs and outputs.

The module is diffusers' UNetControlNetXSModel. Its own forward embeds the control image in each
step, and takes only latents whose sides can be halved at each level; neither is so here.

Source: diffusers, models/controlnets/controlnet_xs.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sdexport.engines import TensorSpec
from sdexport.graphs.controlnet_parts import ControlEmbedding, added_inputs
from sdexport.graphs.wrappers import Part, with_parameters
from sdexport.runtime.models.components import UNET, level_dimensions
from sdexport.runtime.models.conditioning import ConditioningInput
from sdexport.runtime.models.controlnet import (
    CONDITIONING_SCALE,
    CONTROL_EMBEDDING,
    CONTROL_IMAGE,
    CONTROLNET_XS,
    EMBEDDING,
)
from sdexport.runtime.models.stable_diffusion_xl import POOLED_TEXT, TIME_IDS

LATENT_CHANNELS = 4
"""Of every UNet that diffusers fuses with a ControlNet-XS."""
NORM_EPS = 1e-5
"""In the normalisations of such a UNet; in those of residual blocks the fused module has 1e-6."""
_INPUTS = ("sample", "timestep", "encoder_hidden_states")


class FusedUNet(nn.Module):
    """The inputs of a UNet, control_embedding, conditioning_scale -> out_sample."""

    def __init__(self, model: Any, conditioning: Sequence[ConditioningInput]) -> None:
        super().__init__()
        self.model = model
        added = [each.name for each in conditioning]
        self.forward = with_parameters(
            self._forward, [*_INPUTS, *added, EMBEDDING, CONDITIONING_SCALE]
        )

    def _forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        control_embedding: torch.Tensor,
        conditioning_scale: torch.Tensor,
        **added: torch.Tensor,
    ) -> torch.Tensor:
        control = self.model.ctrl_conv_in(sample) + control_embedding
        common = {
            "temb": _time_embedding(self.model, sample.shape[0], timestep, added, controlled=True),
            "encoder_hidden_states": encoder_hidden_states,
            "conditioning_scale": conditioning_scale,
            "apply_control": True,
        }
        return _denoised(self.model, sample, control, common)


class BaseUNet(nn.Module):
    """The inputs of a UNet -> out_sample, as the UNet computes it without the ControlNet-XS.

    For reference outputs; it is not traced.
    """

    def __init__(self, model: Any, conditioning: Sequence[ConditioningInput]) -> None:
        super().__init__()
        self.model = model
        added = [each.name for each in conditioning]
        self.forward = with_parameters(self._forward, [*_INPUTS, *added])

    def _forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **added: torch.Tensor,
    ) -> torch.Tensor:
        common = {
            "temb": _time_embedding(self.model, sample.shape[0], timestep, added, controlled=False),
            "encoder_hidden_states": encoder_hidden_states,
            "apply_control": False,
        }
        with _own_eps(self.model):
            return _denoised(self.model, sample, self.model.ctrl_conv_in(sample), common)


@contextmanager
def _own_eps(model: Any) -> Iterator[None]:
    """Let the residual blocks of the UNet normalise as in the UNet itself."""
    blocks = [*model.mid_block.base_midblock.resnets]
    blocks += [each for block in model.down_blocks for each in block.base_resnets]
    blocks += [each for block in model.up_blocks for each in block.resnets]
    norms = [norm for block in blocks for norm in (block.norm1, block.norm2)]
    before = [norm.eps for norm in norms]
    try:
        for norm in norms:
            norm.eps = NORM_EPS
        yield
    finally:
        for norm, eps in zip(norms, before, strict=True):
            norm.eps = eps


def _time_embedding(
    model: Any,
    rows: int | torch.SymInt,
    timestep: torch.Tensor,
    added: dict[str, torch.Tensor],
    *,
    controlled: bool,
) -> torch.Tensor:
    """What the residual blocks take of the timestep, and of SDXL's conditioning."""
    projected = model.base_time_proj(timestep.expand(rows))
    embedding: torch.Tensor = model.base_time_embedding(projected)
    if model.config.ctrl_learn_time_embedding and controlled:
        share = model.config.time_embedding_mix**0.3
        learned = model.ctrl_time_embedding(projected)
        embedding = learned * share + embedding * (1 - share)
    if added:
        texts, sizes = added[POOLED_TEXT.name], added[TIME_IDS.name]
        numbers = model.base_add_time_proj(sizes.flatten()).reshape((texts.shape[0], -1))
        embedding = embedding + model.base_add_embedding(torch.cat([texts, numbers], dim=-1))
    return embedding


def _denoised(
    model: Any, sample: torch.Tensor, control: torch.Tensor, common: dict[str, Any]
) -> torch.Tensor:
    """The prediction of the UNet.

    Args:
      control: what enters the layers of the ControlNet. common: arguments of all blocks.
    """
    hidden = model.base_conv_in(sample)
    if common["apply_control"]:
        added = model.control_to_base_for_conv_in(control)
        hidden = hidden + added * common["conditioning_scale"]
    skips, control_skips = [hidden], [control]
    for block in model.down_blocks:
        hidden, control, further, further_control = block(
            hidden_states_base=hidden, hidden_states_ctrl=control, **common
        )
        skips += further
        control_skips += further_control
    hidden, _ = model.mid_block(hidden_states_base=hidden, hidden_states_ctrl=control, **common)
    for block in model.up_blocks:
        count = len(block.resnets)
        taken, taken_control = skips[-count:], control_skips[-count:]
        del skips[-count:], control_skips[-count:]
        hidden = block(
            hidden_states=hidden,
            res_hidden_states_tuple_base=tuple(taken),
            res_hidden_states_tuple_ctrl=tuple(taken_control),
            upsample_size=skips[-1].shape[2:] if skips else None,  # of odd sizes not the double
            **common,
        )
    hidden = model.base_conv_act(model.base_conv_norm_out(hidden))
    result: torch.Tensor = model.base_conv_out(hidden)
    return result


def controlnet_xs_parts(config: SimpleNamespace) -> tuple[Part, ...]:
    """The graphs of a ControlNet-XS, in the order in which they run.

    Args:
      config: of a UNetControlNetXSModel.
    """
    space = level_dimensions(0)
    image = TensorSpec(
        CONTROL_IMAGE,
        "float32",
        ("batch", config.ctrl_conditioning_channels, "image_height", "image_width"),
    )
    channels = config.ctrl_block_out_channels[0]
    embedding = TensorSpec(EMBEDDING, "float32", ("batch", channels, *space))
    base = base_part(config)
    return (
        Part(
            CONTROL_EMBEDDING,
            partial(ControlEmbedding, order=config.ctrl_conditioning_channel_order),
            (image,),
            (embedding,),
        ),
        Part(
            CONTROLNET_XS,
            partial(FusedUNet, conditioning=base.conditioning),
            (*base.inputs, embedding, TensorSpec(CONDITIONING_SCALE, "float32", (1,))),
            base.outputs,
            base.conditioning,
        ),
    )


def base_part(config: SimpleNamespace) -> Part:
    """The UNet in a ControlNet-XS, with the inputs and outputs that it has in a model's package."""
    conditioning = (POOLED_TEXT, TIME_IDS) if config.addition_embed_type == "text_time" else ()
    space = level_dimensions(0)
    width = config.cross_attention_dim
    return Part(
        UNET,
        partial(BaseUNet, conditioning=conditioning),
        (
            TensorSpec("sample", "float32", ("batch", LATENT_CHANNELS, *space)),
            TensorSpec("timestep", "float32", (1,)),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", width)),
            *added_inputs(config),
        ),
        (TensorSpec("out_sample", "float32", ("batch", LATENT_CHANNELS, *space)),),
        conditioning,
    )
