"""The graphs of a package as PyTorch modules, with fixed names of inputs and outputs.

The names and shapes are those of the model family (sdexport.runtime.models); everything is float32
at the edges, ids are int64.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sdexport.engines import TensorSpec
from sdexport.runtime.models.components import VAE_DECODER, VAE_ENCODER, ComponentSpec, Role
from sdexport.runtime.models.conditioning import ConditioningInput, Configs
from sdexport.runtime.models.families import family_of_configs
from sdexport.runtime.models.family import ModelFamily
from sdexport.runtime.models.stable_diffusion import STABLE_DIFFUSION
from sdexport.runtime.models.text_layers import clip_skips, pooled_output

TIMESTEP = 601.0
"""The timestep of example inputs."""


class TextEncoder(nn.Module):
    """input_ids (batch, sequence) -> last_hidden_state, pooler_output, clip_skip.1 and so on.

    clip_skip.N is the output without the last N layers, after the final normalisation: what
    diffusers takes for clip_skip=N.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.skips = clip_skips(model.config.num_hidden_layers)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(input_ids=input_ids, output_hidden_states=True)
        normalise = getattr(self.model, "text_model", self.model).final_layer_norm
        skipped = [normalise(result.hidden_states[-1 - n]) for n in self.skips]
        return (result.last_hidden_state, result.pooler_output, *skipped)


class PenultimateTextEncoder(nn.Module):
    """input_ids -> pooled and last_hidden_state in the order of the graph, then hidden_states.N.

    hidden_states.N is the input of layer N, without normalisation.

    Args:
      pooled: name of the pooled output; projected embeddings come first.
    """

    def __init__(self, model: Any, pooled: str, *, projected: bool) -> None:
        super().__init__()
        self.model, self.pooled, self.projected = model, pooled, projected

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(input_ids=input_ids, output_hidden_states=True)
        first = (result.last_hidden_state, result[self.pooled])
        if self.projected:
            first = first[::-1]
        return (*first, *result.hidden_states[:-1])


class UNet(nn.Module):
    """sample, timestep, encoder_hidden_states, conditioning inputs of the family -> out_sample."""

    def __init__(self, model: nn.Module, conditioning: Sequence[ConditioningInput]) -> None:
        super().__init__()
        self.model = model
        self.added = [each.name for each in conditioning if each.added]
        self.forward = with_parameters(
            self._forward,
            ["sample", "timestep", "encoder_hidden_states", *(each.name for each in conditioning)],
        )

    def _forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **conditioning: torch.Tensor,
    ) -> torch.Tensor:
        added = {name: conditioning.pop(name) for name in self.added}
        result: torch.Tensor = self.model(
            sample,
            timestep,
            encoder_hidden_states,
            added_cond_kwargs=added or None,
            **conditioning,
        ).sample
        return result


def with_parameters(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """The function with a signature of these names: torch.export does not take **kwargs."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in names]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


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


class SafetyChecker(nn.Module):
    """clip_input -> cosines of an image's embedding with those of the concepts, and special care.

    What is left of StableDiffusionSafetyChecker, comparing with thresholds, is done without the
    graph: see sdexport.runtime.safety_checker.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip_input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.model.vision_model(clip_input).pooler_output
        image = nn.functional.normalize(self.model.visual_projection(pooled))
        concepts, special_care = (
            image @ nn.functional.normalize(embeds).T
            for embeds in (self.model.concept_embeds, self.model.special_care_embeds)
        )
        return concepts, special_care


@dataclass(frozen=True)
class Part:
    """How one component of a package is made from a checkpoint.

    wrap: turns the checkpoint's module into one with the inputs and outputs of the graph.
    inputs, outputs: as in the package, with the widths of this checkpoint filled in.
    conditioning: the family's conditioning inputs among them.
    multiple: sides of example images are rounded up to multiples of it.
    """

    component: ComponentSpec
    wrap: Callable[[Any], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    conditioning: tuple[ConditioningInput, ...] = ()
    multiple: int = 1

    @property
    def name(self) -> str:
        """The component's folder in a package."""
        return self.component.name

    @property
    def source(self) -> str:
        """The component's folder in the checkpoint."""
        return self.component.source

    @property
    def role(self) -> Role:
        """What the component does."""
        return self.component.role

    def example(self, sizes: dict[str, int], seed: int) -> dict[str, torch.Tensor]:
        """Random inputs with the given size for every named dimension."""
        generator = torch.Generator().manual_seed(seed)
        sides = sizes.keys() & {"image_height", "image_width"}
        sizes = sizes | {s: -(-sizes[s] // self.multiple) * self.multiple for s in sides}
        return {
            spec.name: self._random(
                spec, [sizes[d] if isinstance(d, str) else d for d in spec.shape], generator
            )
            for spec in self.inputs
        }

    def _random(
        self, spec: TensorSpec, shape: list[int], generator: torch.Generator
    ) -> torch.Tensor:
        below = {each.name: each.example_below for each in self.conditioning}.get(spec.name)
        if spec.name == "timestep":
            return torch.full(shape, TIMESTEP)
        if below is not None:
            return torch.randint(0, below, shape, generator=generator).float()
        if spec.dtype == "int64":
            return torch.randint(0, 256, shape, generator=generator)
        values = torch.randn(shape, generator=generator)
        return values.clamp(-1, 1) if self.role is Role.VAE_ENCODER else values


def parts(configs: Configs) -> tuple[Part, ...]:
    """The graphs for the configurations of a checkpoint, in the order in which they run."""
    family = family_of_configs(configs)
    present = (c for c in family.components if not c.optional or c.source in configs)
    return tuple(_part(family, component, configs) for component in present)


def vae_parts(config: Any) -> tuple[Part, ...]:
    """Decoder and encoder, for the configuration of a VAE alone."""
    configs = {VAE_DECODER.source: config}
    return tuple(_part(STABLE_DIFFUSION, each, configs) for each in (VAE_DECODER, VAE_ENCODER))


def _part(family: ModelFamily, component: ComponentSpec, configs: Configs) -> Part:
    inputs, outputs = family.graph(component, configs)
    conditioning = family.conditioning if component.role is Role.DENOISER else ()
    wrap = _wrapper(family, component, configs)
    return Part(component, wrap, inputs, outputs, conditioning)


def _wrapper(
    family: ModelFamily, component: ComponentSpec, configs: Configs
) -> Callable[[Any], nn.Module]:
    if component.role is Role.DENOISER:
        return partial(UNet, conditioning=family.conditioning)
    if component.role is Role.VAE_DECODER:
        return VaeDecoder
    if component.role is Role.VAE_ENCODER:
        return VaeEncoder
    if component.role is Role.SAFETY_CHECKER:
        return SafetyChecker
    if not family.text_layers.penultimate:
        return TextEncoder
    projected = component.projected
    pooled, _ = pooled_output(configs[component.source], projected=projected)
    return partial(PenultimateTextEncoder, pooled=pooled, projected=projected)
