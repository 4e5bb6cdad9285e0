"""The graphs of a package: thin modules with fixed names for what goes in and comes out.

Input and output names are those of Optimum. Everything is float32 at the edges, ids are int64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sdexport.engines import TensorSpec

Shape = tuple[int | str, ...]


class TextEncoder(nn.Module):
    """input_ids (batch, sequence) -> last_hidden_state, pooler_output, clip_skip.1 and so on.

    clip_skip.N is what comes out if the last N layers are left out, through the final
    normalisation, which is what diffusers' clip_skip=N takes.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.skips = clip_skips(model.config)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(input_ids=input_ids, output_hidden_states=True)
        normalise = getattr(self.model, "text_model", self.model).final_layer_norm
        skipped = [normalise(result.hidden_states[-1 - n]) for n in self.skips]
        return (result.last_hidden_state, result.pooler_output, *skipped)


class TextEncoderXL(nn.Module):
    """input_ids -> text_embeds, last_hidden_state, or last_hidden_state, pooler_output; then
    hidden_states.0 and so on.

    hidden_states.N goes into layer N; SDXL takes the last of them, which no normalisation touched.
    text_embeds comes first: Optimum's pipeline takes the pooled embeddings by their place.
    """

    def __init__(self, model: Any, pooled: str) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(input_ids=input_ids, output_hidden_states=True)
        first = (result.last_hidden_state, result[self.pooled])
        if self.pooled == "text_embeds":
            first = first[::-1]
        return (*first, *result.hidden_states[:-1])


def clip_skips(config: Any) -> range:
    """How many layers may be left out: 1 and 2 where there are as many to spare."""
    return range(1, min(3, config.num_hidden_layers))


class UNet(nn.Module):
    """sample, timestep, encoder_hidden_states and further conditions -> out_sample."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        result: torch.Tensor = self.model(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
        ).sample
        return result


class VaeDecoder(nn.Module):
    """latent_sample -> sample."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.conv = model.decoder, getattr(model, "post_quant_conv", None)

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        latents = latent_sample if self.conv is None else self.conv(latent_sample)
        result: torch.Tensor = self.decoder(latents)
        return result


class VaeEncoder(nn.Module):
    """sample -> latent_parameters: mean and log variance of the posterior, stacked.

    AutoencoderTiny has no posterior: its latent_parameters are the latents.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.conv = model.encoder, getattr(model, "quant_conv", None)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        moments: torch.Tensor = self.encoder(sample)
        return moments if self.conv is None else self.conv(moments)


@dataclass(frozen=True)
class Part:
    """How one component of a package comes out of a checkpoint.

    source: the subfolder of the checkpoint. inputs, outputs: as in the package, with the width of
    this checkpoint filled in.
    """

    name: str
    source: str
    wrap: Callable[[Any], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def example(self, sizes: dict[str, int], seed: int) -> dict[str, torch.Tensor]:
        """Random inputs with the given size for every named dimension."""
        generator = torch.Generator().manual_seed(seed)
        return {
            spec.name: _random_tensor(
                spec, [sizes[d] if isinstance(d, str) else d for d in spec.shape], generator
            )
            for spec in self.inputs
        }


def _random_tensor(spec: TensorSpec, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    if spec.name == "timestep":
        return torch.full(shape, 601.0)
    if spec.name == "time_ids":
        return torch.randint(0, 1024, shape, generator=generator).float()
    if spec.dtype == "int64":
        return torch.randint(0, 256, shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    return values.clamp(-1, 1) if spec.name == "sample" and shape[1] == 3 else values


def parts(configs: Mapping[str, Any]) -> tuple[Part, ...]:
    """The graphs for the configurations of a checkpoint, in the order in which they paint."""
    xl = "text_encoder_2" in configs
    texts = [
        _text_part(name, configs[name], xl=xl)
        for name in ("text_encoder", "text_encoder_2")
        if name in configs
    ]
    return (*texts, _unet_part(configs), *vae_parts(configs["vae"]))


def _spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def _text_part(name: str, config: Any, *, xl: bool) -> Part:
    width = config.hidden_size
    inputs = (_spec("input_ids", "batch", "sequence", dtype="int64"),)
    last = _spec("last_hidden_state", "batch", "sequence", width)
    if not xl:
        further = [f"clip_skip.{n}" for n in clip_skips(config)]
        pooled, pooled_width, wrap = "pooler_output", width, TextEncoder
    else:
        further = [f"hidden_states.{n}" for n in range(config.num_hidden_layers)]
        projected = name == "text_encoder_2"
        pooled = "text_embeds" if projected else "pooler_output"
        pooled_width = config.projection_dim if projected else width
        wrap = partial(TextEncoderXL, pooled=pooled)  # type: ignore[assignment]
    hidden = [_spec(output, "batch", "sequence", width) for output in further]
    first = [last, _spec(pooled, "batch", pooled_width)]
    if pooled == "text_embeds":
        first.reverse()
    return Part(name, name, wrap, inputs, (*first, *hidden))


def _unet_part(configs: Mapping[str, Any]) -> Part:
    unet, space = configs["unet"], ("height", "width")
    inputs = [
        _spec("sample", "batch", unet.in_channels, *space),
        _spec("timestep", 1),
        _spec("encoder_hidden_states", "batch", "sequence", unet.cross_attention_dim),
    ]
    if "text_encoder_2" in configs:
        width = configs["text_encoder_2"].projection_dim
        rest = unet.projection_class_embeddings_input_dim - width
        inputs += [
            _spec("text_embeds", "batch", width),
            _spec("time_ids", "batch", rest // unet.addition_time_embed_dim),
        ]
    if unet.time_cond_proj_dim:
        inputs.append(_spec("timestep_cond", "batch", unet.time_cond_proj_dim))
    outputs = (_spec("out_sample", "batch", unet.out_channels, *space),)
    return Part("unet", "unet", UNet, tuple(inputs), outputs)


def vae_parts(vae: Any) -> tuple[Part, Part]:
    """Decoder and encoder, for the configuration of a VAE."""
    space, pixels = ("height", "width"), ("image_height", "image_width")
    parameters = vae.latent_channels * (2 if hasattr(vae, "use_quant_conv") else 1)
    return (
        Part(
            "vae_decoder",
            "vae",
            VaeDecoder,
            (_spec("latent_sample", "batch", vae.latent_channels, *space),),
            (_spec("sample", "batch", vae.out_channels, *pixels),),
        ),
        Part(
            "vae_encoder",
            "vae",
            VaeEncoder,
            (_spec("sample", "batch", vae.in_channels, *pixels),),
            (_spec("latent_parameters", "batch", parameters, *space),),
        ),
    )
