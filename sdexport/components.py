"""The graphs of a package: thin modules with fixed names for what goes in and comes out.

Input and output names are those of Optimum. Everything is float32 at the edges, ids are int64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engines import TensorSpec

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


def clip_skips(config: Any) -> range:
    """How many layers may be left out: 1 and 2 where there are as many to spare."""
    return range(1, min(3, config.num_hidden_layers))


class UNet(nn.Module):
    """sample, timestep, encoder_hidden_states -> out_sample."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        result: torch.Tensor = self.model(sample, timestep, encoder_hidden_states).sample
        return result


class VaeDecoder(nn.Module):
    """latent_sample -> sample."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.conv = model.decoder, model.post_quant_conv

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        latents = latent_sample if self.conv is None else self.conv(latent_sample)
        result: torch.Tensor = self.decoder(latents)
        return result


class VaeEncoder(nn.Module):
    """sample -> latent_parameters: mean and log variance of the posterior, stacked."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.conv = model.encoder, model.quant_conv

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
    if spec.dtype == "int64":
        return torch.randint(0, 256, shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    return values.clamp(-1, 1) if spec.name == "sample" and shape[1] == 3 else values


def parts(text_encoder: Any, unet: Any, vae: Any) -> tuple[Part, ...]:
    """The four graphs for the configurations of a checkpoint."""

    def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
        return TensorSpec(name, dtype, shape)

    width = text_encoder.hidden_size
    channels, latent = unet.in_channels, vae.latent_channels
    space = ("height", "width")
    pixels = ("image_height", "image_width")
    return (
        Part(
            "text_encoder",
            "text_encoder",
            TextEncoder,
            (spec("input_ids", "batch", "sequence", dtype="int64"),),
            (
                spec("last_hidden_state", "batch", "sequence", width),
                spec("pooler_output", "batch", width),
                *(
                    spec(f"clip_skip.{n}", "batch", "sequence", width)
                    for n in clip_skips(text_encoder)
                ),
            ),
        ),
        Part(
            "unet",
            "unet",
            UNet,
            (
                spec("sample", "batch", channels, *space),
                spec("timestep", 1),
                spec("encoder_hidden_states", "batch", "sequence", unet.cross_attention_dim),
            ),
            (spec("out_sample", "batch", unet.out_channels, *space),),
        ),
        Part(
            "vae_decoder",
            "vae",
            VaeDecoder,
            (spec("latent_sample", "batch", latent, *space),),
            (spec("sample", "batch", vae.out_channels, *pixels),),
        ),
        Part(
            "vae_encoder",
            "vae",
            VaeEncoder,
            (spec("sample", "batch", vae.in_channels, *pixels),),
            (spec("latent_parameters", "batch", 2 * latent, *space),),
        ),
    )
