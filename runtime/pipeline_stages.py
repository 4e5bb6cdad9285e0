"""The stages of a pipeline, each usable alone: encode, denoise, decode."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines import Session
from sdexport.engines.closing import ClosesOnExit
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks, scheduler_argument, timestep_plan
from sdexport.runtime.adapters.adapter_store import AdapterStore
from sdexport.runtime.adapters.call_loras import LoraArgument, lora_folder, loras_of_call
from sdexport.runtime.adapters.lora_store import LoraStore
from sdexport.runtime.component_backends import Backends, BackendSpec
from sdexport.runtime.component_sessions import ComponentSessions, chunks, finite
from sdexport.runtime.denoise import DenoiseStep, Draw, denoise
from sdexport.runtime.expected_calls import ImageCall
from sdexport.runtime.guidance import Guidance
from sdexport.runtime.images import vae
from sdexport.runtime.images.pixels import to_uint8, to_unit
from sdexport.runtime.initial_latents import InitialLatents
from sdexport.runtime.inputs import MAX_SIDE
from sdexport.runtime.models.family import Defaults
from sdexport.runtime.packages.package import Package
from sdexport.runtime.scheduler_argument import SchedulerArgument, SchedulerChoice
from sdexport.runtime.schedulers import Scheduler
from sdexport.runtime.text.prompt_conditions import PromptConditions, joined
from sdexport.runtime.text.prompt_embeds import Embeds
from sdexport.runtime.text.prompt_styles import read_tags, style_name
from sdexport.runtime.text.prompt_texts import require_constant
from sdexport.runtime.text.token_embeds import TokenEmbeds
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.runtime.text_encoders import TextEncoders


class PipelineStages(ClosesOnExit):
    """What a Pipeline does, one stage at a time; see Pipeline for the arguments."""

    def __init__(
        self,
        package: Package,
        backend: Backends = "onnxruntime",
        *,
        sessions: Mapping[str, Session] | None = None,
        max_batch: int | None = None,
        vae_tile: int | None = None,
        low_memory: bool = False,
        lora_dir: str | PathLike[str] | None = None,
        expected_images: int | None = None,
        **options: Any,
    ) -> None:
        if package.manifest.is_adapter:
            raise InvalidArgumentError(
                f"{package.folder} is the package of a {package.manifest.family}, not of a model: "
                "give it to the pipeline of a model, as one of controlnets, t2i_adapters or "
                "ip_adapters (--controlnet FOLDER:IMAGE)"
            )
        unit = package.manifest.downscale
        if max_batch is not None:
            checks.integer("max_batch", max_batch, 1, 2**31)
        if vae_tile is not None:
            check_tile(vae_tile, unit)
        checks.boolean("low_memory", low_memory)
        if expected_images is not None:
            checks.integer("expected_images", expected_images, 1, 2**31)
        self.lora_dir = None if lora_dir is None else lora_folder(lora_dir)
        self.package = package
        self.max_batch, self.vae_tile = max_batch, vae_tile
        self._family, self._space = package.family, package.manifest.latent_space
        self._components = ComponentSessions(
            package, backend, options, sessions or {}, low_memory=low_memory, images=expected_images
        )
        self.text_encoders = TextEncoders(package, self.session)
        self._loras = LoraStore(package)
        self._adapters = AdapterStore(
            package, backend, options, low_memory=low_memory, images=expected_images
        )
        scheduler_argument.warn_of_replacement(package.scheduler_config)

    @property
    def tokenizer(self) -> ClipTokenizer:
        """The tokenizer of the first text encoder."""
        return next(iter(self.text_encoders.tokenizers.values()))

    def session(self, component: str) -> Session:
        """The open session of a component.

        Raises: PackageError: the package has no such component. EngineError: it cannot be opened,
          or the pipeline is closed.
        """
        return self._components[component]

    def open_ahead(self, components: Iterable[str], call: ImageCall | None = None) -> None:
        """Begin to open large components in the background, in the order of their use.

        What goes wrong is raised when a component is used.

        Args:
          call: what they will be called for, if it is known.
        """
        self._components.open_ahead(components, call)

    def open_decoder_meanwhile(self, coming: str, call: ImageCall | None) -> None:
        """Open the decoder, if another component is still being opened; see open_ahead."""
        self._components.open_meanwhile(self._family.vae_decoder, coming, call)

    def rest_text_encoders(self) -> None:
        """Free large mapped weights of the text encoders, or close them after the only prompt."""
        self._components.rest([spec.name for spec in self._family.text_encoders])

    def finish_denoising(self) -> None:
        """Close the denoiser, if one image is expected."""
        self._components.finish([self._family.denoiser])

    def load_lora(self, path: str | PathLike[str], name: str | None = None) -> str:
        """Read a LoRA, to use it by its name in `loras`.

        Args:
          path: a .safetensors file, or a folder as diffusers or PEFT write it.
          name: default that of the file without its ending.
        Returns: the name.
        Raises: InvalidArgumentError: another LoRA has that name. FileNotFoundError: no such file.
          CheckpointError: no LoRA, or one that does not fit. PackageError: the package takes none.
        """
        return self._loras.add(path, name)

    def unload_lora(self, name: str) -> None:
        """Forget a LoRA that `load_lora` read.

        Raises: InvalidArgumentError: there is none of that name.
        """
        self._loras.remove(name)

    def lora_may_add_words(self, path: Path) -> bool:
        """Whether a LoRA's file brings words for the tokenizers; True until a call has read it."""
        return self._loras.may_add_words(path)

    def text_encoders_with(self, loras: Sequence[LoraArgument] | None) -> TextEncoders:
        """The text encoders with LoRAs, as a call of one image applies them.

        Raises: as a call with these `loras`.
        """
        applied = loras_of_call(self._loras, loras, 1, self._components)
        return applied.text_encoders(self.text_encoders)

    def opened_with(self, component: str) -> BackendSpec:
        """The backend that runs a component, with all options of its session.

        Raises: MissingDependencyError: no backend is installed.
        """
        return self._components.opened_with(component)

    def __repr__(self) -> str:
        height, width = self.package.manifest.default_size
        return (
            f"<{type(self).__name__} {self.package.folder.resolve().name}: "
            f"{self._family.name}, {width}x{height}, on {self._components.backend_names()}>"
        )

    def close(self) -> None:
        """Close every session that the pipeline opened; closing twice is allowed."""
        self._adapters.close()
        self._components.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the package, and the pipeline's own settings that change its images."""
        return {
            "model": self.package.folder.resolve().name,
            "model_hash": self.package.digest,
            "vae_tile": self.vae_tile,
            "max_batch": self.max_batch,
            **self._components.settings(),
        }

    def components_in(self, sessions: Collection[str]) -> tuple[str, ...]:
        """The components that some sessions are of, by their names."""
        names = {name.partition(".")[0] for name in sessions}
        return tuple(name for name in self.package.manifest.components if name in names)

    @property
    def default_scheduler(self) -> str:
        """The package's own scheduler if it is known here, else DDIM."""
        return scheduler_argument.default_scheduler(self.package.scheduler_config)

    def defaults(self, *, image: bool = False, mask: bool = False) -> Defaults:
        """Default arguments of a call with or without an image and a mask."""
        return self._family.defaults(image=image, mask=mask)

    def scheduler(
        self,
        scheduler: SchedulerArgument | None,
        num_inference_steps: int,
        *,
        schedule: str | None = None,
        eta: float = 0.0,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        **options: Any,
    ) -> Scheduler:
        """A scheduler on the package's configuration; see sdexport.runtime.schedulers.create.

        The arguments are those of a call, and `options` its scheduler_options.
        """
        choice = self._choose(scheduler, schedule, options)
        return timestep_plan.make_scheduler(
            choice, num_inference_steps, eta=eta, timesteps=timesteps, sigmas=sigmas
        )

    def _choose(
        self,
        scheduler: SchedulerArgument | None,
        schedule: str | None,
        options: Mapping[str, Any] | None,
    ) -> SchedulerChoice:
        return scheduler_argument.choose_scheduler(
            scheduler,
            self.package.scheduler_config,
            schedule=schedule,
            options=options,
            tables=self._family.schedules,
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H/8, W/8) of the latents of an image of (height, width) pixels."""
        return self._space.shape(height, width)

    def encode(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str] | None = None,
        *,
        prompt_style: str | None = None,
        prompt_weights: bool = False,
        clip_skip: int = 0,
        token_embeds: TokenEmbeds | None = None,
    ) -> np.ndarray:
        """Text embeddings, the negative ones first if there are any.

        Args:
          prompt_style, prompt_weights, clip_skip, token_embeds: see `__call__`.
        Returns: (B, n, width) float32, or (2B, n, width) with negatives; n is 77, or a multiple of
          it for long prompts in a style other than "plain".
        Raises: InvalidArgumentError: not valid Unicode; a prompt that changes from step to step or
          is composed with AND; a clip_skip that the package has no output for; token_embeds that do
          not fit.
        """
        above = checks.strings("negatives", negatives or [])
        texts = checks.strings("prompts", prompts)
        style = style_name(prompt_style, weights=prompt_weights)
        require_constant(texts, above, style, "embeddings, which are the same in each step")
        found = self.text_encoders.encode(
            read_tags([*above, *texts], style),
            len(above),
            prompt_style=style,
            clip_skip=clip_skip,
            token_embeds=token_embeds,
        )
        return joined(found, style)

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        """The VAE's posterior of pixels (B, 3, H, W) float32 in -1..1; see vae.encode.

        Raises: InvalidArgumentError: another dtype or shape, or sides that are not multiples of
          the package's downscale. EngineError: the encoder failed.
        """
        name, unit = self._family.vae_encoder, self._space.downscale
        checks.float_array("pixels", pixels, (None, 3, None, None))
        if not pixels.size or pixels.shape[2] % unit or pixels.shape[3] % unit:
            raise InvalidArgumentError(
                f"pixels: sides must be multiples of {unit}, got {pixels.shape}"
            )
        parts = [
            vae.encode(self.session(name), pixels[rows], tile=self.vae_tile, downscale=unit)
            for rows in chunks(len(pixels), self.max_batch)
        ]
        return finite(np.concatenate(parts), name, "the image")

    def denoise(
        self,
        latents: np.ndarray,
        prompt_embeds: Embeds,
        scheduler: Scheduler,
        *,
        guidance_scale: float = 7.5,
        guidance: Guidance | None = None,
        conditioning: Mapping[str, np.ndarray] | None = None,
        draw: Draw | None = None,
        cache_interval: tuple[float, float] | None = None,
    ) -> Generator[DenoiseStep]:
        """Turn noise into clean latents, yielding after every step.

        Leaving the loop early, closing the generator or Ctrl-C stops at once; the sessions stay
        usable.

        Args:
          latents: (B, C, H/8, W/8) float32 standard normal noise.
          prompt_embeds: from `encode`, with negatives exactly if guidance_scale > 1; or a function
            from (step index, number of steps) to such arrays.
          guidance: instead of guidance_scale.
          conditioning: further inputs of the denoiser by name; see
            sdexport.runtime.models.conditioning.
          draw: returns fresh noise of a shape, for schedulers that take noise.
          cache_interval: see `__call__`.
        Raises: InvalidArgumentError: arrays do not fit. EngineError: the denoiser failed, or its
          output is not finite.
        """
        guidance = guidance or Guidance(guidance_scale)
        checks.float_array("latents", latents, (None, self._space.channels, None, None))
        start = InitialLatents(latents)
        return self._denoise(
            start, prompt_embeds, scheduler, guidance, draw, conditioning, cache_interval
        )

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pixels of clean latents (B, C, H/8, W/8) float32: (B, H, W, 3) uint8.

        Raises: InvalidArgumentError: another dtype or shape. EngineError: the decoder failed.
        """
        return self._decode(latents, to_uint8)

    def decode_to_float(self, latents: np.ndarray) -> np.ndarray:
        """As `decode`, not rounded: (B, H, W, 3) float32 in 0..1."""
        return self._decode(latents, to_unit)

    def _decode(
        self, latents: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        space, name = self._space, self._family.vae_decoder
        checks.float_array("latents", latents, (None, space.channels, None, None))
        tile = None if self.vae_tile is None else self.vae_tile // space.downscale
        parts = []
        for rows in chunks(len(latents), self.max_batch):
            sample = vae.decode(self.session(name), space.to_vae(latents[rows]), tile=tile)
            parts.append(convert(finite(sample, name, "the latents")))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _denoise(
        self,
        start: InitialLatents,
        embeds: Embeds | PromptConditions,
        scheduler: Scheduler,
        guidance: Guidance,
        draw: Draw | None,
        conditioning: Mapping[str, np.ndarray] | None,
        cache_interval: tuple[float, float] | None,
    ) -> Generator[DenoiseStep]:
        return denoise(
            self.session(self._family.denoiser),
            start,
            embeds,
            scheduler,
            guidance=guidance,
            conditioning=conditioning,
            draw=draw,
            max_batch=self.max_batch,
            cache_interval=cache_interval,
        )


def check_tile(vae_tile: object, downscale: int) -> int:
    """The side of the VAE's tiles itself.

    Raises: InvalidArgumentError: it is no multiple of `downscale`, or out of range.
    """
    side = checks.integer("vae_tile", vae_tile, 8 * downscale, MAX_SIDE)
    if side % downscale:
        raise InvalidArgumentError(f"vae_tile must be a multiple of {downscale}, got {side}")
    return side
