"""A model family: the one object that knows everything that differs between families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdexport.engines import TensorSpec
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.guidance import Guidance
from sdexport.runtime.models.components import (
    CONCEPTS,
    SPECIAL_CARE,
    AdapterKind,
    ComponentSpec,
    Role,
)
from sdexport.runtime.models.conditioning import ConditioningInput, Configs
from sdexport.runtime.models.latent_space import latent_size_of
from sdexport.runtime.models.text_layers import TextLayers, pooled_output


@dataclass(frozen=True)
class Defaults:
    """Default arguments of a pipeline call; strength is None for text to image.

    Source: the signatures of diffusers 0.42's pipelines; tests/parity compares them.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    strength: float | None = None


@dataclass(frozen=True)
class ModelFamily:
    """What a model family consists of, and how its pipeline behaves.

    name: as in a package's manifest.
    pipelines: class names of diffusers' pipelines whose checkpoints belong to it.
    components: in the order in which a pipeline runs them; then the VAE encoder, and the safety
      checker if the family has one.
    text_to_image, image_to_image, inpainting: default arguments of each task.
    conditioning: inputs of the denoiser in addition to latents, timestep and prompt.
    text_layers: which outputs of the text encoders are used.
    zero_negative: whether the negative embeddings are zeros if there is no negative prompt, as long
      as the checkpoint's model_index.json does not say otherwise.
    guidance_embedding: whether the guidance scale is an input of the denoiser; then there is no
      unconditional pass.
    masked_input: whether the denoiser takes a mask and the latents of the masked image.
    refines: whether it only works on an image, with an aesthetic score instead of a target size.
    strength_shortens: whether image to image runs a schedule that the strength shortens, instead of
      the last part of the whole one.
    schedules: schedule -> the one that stands for it in this family, which has its own table.
    reports_nsfw: whether diffusers' pipelines return the verdict of a safety checker with images.
    half_precision_vae: whether the VAE can be computed in float16.
    normalised_latents: whether the mean and standard deviation in the VAE's configuration are used.
    adapter: the kind of adapter that packages of this family hold, instead of a model.
    """

    name: str
    pipelines: tuple[str, ...]
    components: tuple[ComponentSpec, ...]
    text_to_image: Defaults
    image_to_image: Defaults
    inpainting: Defaults
    conditioning: tuple[ConditioningInput, ...] = ()
    text_layers: TextLayers = field(default_factory=TextLayers)
    zero_negative: bool = False
    guidance_embedding: bool = False
    masked_input: bool = False
    refines: bool = False
    strength_shortens: bool = False
    schedules: Mapping[str, str] = field(default_factory=dict)
    reports_nsfw: bool = True
    half_precision_vae: bool = True
    normalised_latents: bool = False
    adapter: AdapterKind | None = None

    def component(self, name: str) -> ComponentSpec:
        """A component by its name; KeyError if the family has no such component."""
        return {spec.name: spec for spec in self.components}[name]

    def with_role(self, role: Role) -> ComponentSpec:
        """The first component of a role.

        Raises: InvalidArgumentError: there is none, as in an adapter.
        """
        for spec in self.components:
            if spec.role is role:
                return spec
        raise InvalidArgumentError(f"a package of the family {self.name} has no {role.value}")

    @property
    def text_encoders(self) -> tuple[ComponentSpec, ...]:
        """The text encoders, in the order in which their embeddings are concatenated."""
        return tuple(spec for spec in self.components if spec.role is Role.TEXT_ENCODER)

    @property
    def denoiser(self) -> str:
        """Name of the component that predicts the noise."""
        return self.with_role(Role.DENOISER).name

    @property
    def vae_decoder(self) -> str:
        """Name of the component that turns latents into pixels."""
        return self.with_role(Role.VAE_DECODER).name

    @property
    def vae_encoder(self) -> str:
        """Name of the component that turns pixels into latents."""
        return self.with_role(Role.VAE_ENCODER).name

    @property
    def prompt_components(self) -> tuple[str, ...]:
        """Names of the components that generate an image from a prompt, without an input image."""
        others = (Role.VAE_ENCODER, Role.SAFETY_CHECKER)
        return tuple(spec.name for spec in self.components if spec.role not in others)

    @property
    def safety_checker(self) -> str | None:
        """Name of the component that checks images; None if the family has none."""
        found = (spec.name for spec in self.components if spec.role is Role.SAFETY_CHECKER)
        return next(found, None)

    @property
    def sources(self) -> tuple[str, ...]:
        """Folders of a diffusers checkpoint that hold the components."""
        return tuple(dict.fromkeys(spec.source for spec in self.components))

    @property
    def starts_from_image(self) -> bool:
        """Whether an image is always needed."""
        return self.masked_input or self.refines

    def defaults(self, *, image: bool, mask: bool) -> Defaults:
        """Default arguments for a call with or without an image and a mask."""
        if mask:
            return self.inpainting
        return self.image_to_image if image else self.text_to_image

    def check_task(self, *, image: bool, mask: bool) -> None:
        """Raises: InvalidArgumentError: the family needs an image or a mask that is missing."""
        if self.masked_input and not mask:
            raise InvalidArgumentError("an inpainting model needs both: give image and mask_image")
        if self.refines and not image:
            raise InvalidArgumentError("a refiner needs an image: give image")

    def zeros_without_negative_prompt(self, model_index: Mapping[str, Any]) -> bool:
        """Whether no negative prompt means embeddings of zeros."""
        return self.zero_negative and bool(model_index.get("force_zeros_for_empty_prompt", True))

    def guidance(self, guidance: Guidance) -> Guidance:
        """The guidance that the denoising loop applies: none if the denoiser takes the scale."""
        return replace(guidance, scale=1.0) if self.guidance_embedding else guidance

    def output_tuple(self, images: Any, nsfw_content_detected: Any = None) -> Any:
        """What diffusers' pipeline returns with return_dict=False."""
        return (images, nsfw_content_detected) if self.reports_nsfw else (images,)

    def denoiser_channels(self, latent_channels: int) -> int:
        """Input channels of the denoiser: the latents, and for inpainting a mask and latents."""
        return 2 * latent_channels + 1 if self.masked_input else latent_channels

    def unmet_expectations(self, configs: Configs) -> list[str]:
        """What does not hold of a checkpoint's configurations, in words; empty if all does."""
        vae, denoiser = (
            self._config(configs, Role.VAE_DECODER),
            self._config(configs, Role.DENOISER),
        )
        width = sum(configs[spec.source].hidden_size for spec in self.text_encoders)
        added = any(each.added for each in self.conditioning)
        holds = {
            "unet.in_channels to be vae.latent_channels, or twice that and one for inpainting": (
                denoiser.in_channels == self.denoiser_channels(vae.latent_channels)
            ),
            "unet.cross_attention_dim to be text_encoder.hidden_size": (
                denoiser.cross_attention_dim == width
            ),
            "a unet without class conditioning": (
                not denoiser.class_embed_type and not denoiser.num_class_embeds
            ),
            "a unet with text and time conditioning (addition_embed_type) exactly if there is a "
            "text_encoder_2": (denoiser.addition_embed_type == ("text_time" if added else None)),
            "a vae without shift_factor": not getattr(vae, "shift_factor", None),
            "a vae without latents_mean and latents_std": self.normalised_latents
            or not any(getattr(vae, key, None) for key in ("latents_mean", "latents_std")),
        }
        return [name for name, met in holds.items() if not met]

    def latent_size(self, configs: Configs) -> tuple[int, int]:
        """(height, width) in latent cells that the denoiser was trained on."""
        return latent_size_of(vars(self._config(configs, Role.DENOISER)))

    def graph(
        self, component: ComponentSpec, configs: Configs
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of an exported graph, for the configurations of a checkpoint.

        Names are those of Optimum. Everything is float32 at the edges, ids are int64.
        """
        config = configs[component.source]
        space, pixels = ("height", "width"), ("image_height", "image_width")
        if component.role is Role.TEXT_ENCODER:
            return self._text_graph(component, config)
        if component.role is Role.DENOISER:
            further = [_spec(each.name, *each.shape(configs)) for each in self.conditioning]
            return (
                _spec("sample", "batch", config.in_channels, *space),
                _spec("timestep", 1),
                _spec("encoder_hidden_states", "batch", "sequence", config.cross_attention_dim),
                *further,
            ), (_spec("out_sample", "batch", config.out_channels, *space),)
        if component.role is Role.VAE_DECODER:
            return (
                (_spec("latent_sample", "batch", config.latent_channels, *space),),
                (_spec("sample", "batch", config.out_channels, *pixels),),
            )
        if component.role is Role.SAFETY_CHECKER:
            vision = config.vision_config
            side = vision["image_size"]
            return (_spec("clip_input", "batch", vision["num_channels"], side, side),), (
                _spec(CONCEPTS, "batch", config.concepts),
                _spec(SPECIAL_CARE, "batch", config.special_care),
            )
        parameters = config.latent_channels * (2 if hasattr(config, "use_quant_conv") else 1)
        return (
            (_spec("sample", "batch", config.in_channels, *pixels),),
            (_spec("latent_parameters", "batch", parameters, *space),),
        )

    def _text_graph(
        self, component: ComponentSpec, config: Any
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        def hidden(name: str) -> TensorSpec:
            return _spec(name, "batch", "sequence", config.hidden_size)

        pooled, width = pooled_output(config, projected=component.projected)
        first = [hidden("last_hidden_state"), _spec(pooled, "batch", width)]
        if component.projected:  # Optimum's pipeline takes the pooled embeddings by their place
            first.reverse()
        further = map(hidden, self.text_layers.exported(config.num_hidden_layers))
        return (_spec("input_ids", "batch", "sequence", dtype="int64"),), (*first, *further)

    def _config(self, configs: Configs, role: Role) -> Any:
        return configs[self.with_role(role).source]


def _spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)
