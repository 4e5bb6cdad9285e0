"""Text to image, image to image and inpainting: encode, denoise, decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines import Session
from sdexport.engines.closing import ClosesOnExit
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks, inputs, timestep_plan
from sdexport.runtime.component_backends import Backends
from sdexport.runtime.component_sessions import ComponentSessions, chunks, finite
from sdexport.runtime.denoise import DenoiseStep, Draw, denoise
from sdexport.runtime.guidance import Guidance, GuidanceFunction
from sdexport.runtime.images import vae
from sdexport.runtime.images.loading import ImageInput
from sdexport.runtime.images.pixels import to_uint8
from sdexport.runtime.initial_latents import InitialLatents, initial_latents
from sdexport.runtime.inputs import MAX_SIDE, ImageInputs, Noise
from sdexport.runtime.models.conditioning import (
    ConditioningRequest,
    SizeConditioning,
    conditioning_values,
)
from sdexport.runtime.models.family import Defaults
from sdexport.runtime.packages.package import Package
from sdexport.runtime.reproduction import (
    arguments_like,
    differences,
    folder_of,
    parameters_of,
    warn_of_differences,
)
from sdexport.runtime.result import Result, image_parameters
from sdexport.runtime.schedulers import Scheduler
from sdexport.runtime.text.prompt_embeds import EmbedArguments, Embeds, prepare_embeds
from sdexport.runtime.text.token_embeds import TokenEmbeds
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.runtime.text_encoders import TextEncoders
from sdexport.runtime.timestep_plan import TimestepPlan, plan_timesteps


class Pipeline(ClosesOnExit):
    """Generates images with a package; usable from several threads, and a context manager.

    Args:
      package: a checked package.
      backend: one for all components, or {"unet": "openvino", "*": "auto"}; see
        component_backends.py.
      options: of the backends' sessions, used when components are first needed.
      sessions: components that are open already; the caller closes them.
      max_batch: images that a component processes at once; None processes all of them. Bounds the
        memory of a large batch and changes nothing else.
      vae_tile: side in pixels of the tiles in which the VAE processes larger images; None processes
        the whole image. Bounds memory; colors may shift a little from tile to tile.
      low_memory: keep one component in memory at a time; each is opened when it is needed.

    Example:
        >>> from sdexport import Package, Pipeline
        >>> with Pipeline(Package.load("package"), max_batch=1) as pipe:
        ...     latents = pipe("a red circle", num_inference_steps=2, seed=0).latents
        >>> latents.shape
        (1, 4, 16, 16)
    """

    def __init__(
        self,
        package: Package,
        backend: Backends = "onnxruntime",
        *,
        sessions: Mapping[str, Session] | None = None,
        max_batch: int | None = None,
        vae_tile: int | None = None,
        low_memory: bool = False,
        **options: Any,
    ) -> None:
        unit = package.manifest.downscale
        if max_batch is not None:
            checks.integer("max_batch", max_batch, 1, 2**31)
        if vae_tile is not None and checks.integer("vae_tile", vae_tile, 8 * unit, MAX_SIDE) % unit:
            raise InvalidArgumentError(f"vae_tile must be a multiple of {unit}, got {vae_tile}")
        self.package = package
        self.max_batch, self.vae_tile = max_batch, vae_tile
        self._family, self._space = package.family, package.manifest.latent_space
        self._components = ComponentSessions(
            package, backend, options, sessions or {}, low_memory=low_memory
        )
        self.text_encoders = TextEncoders(package, self.session)

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

    def close(self) -> None:
        """Close every session that the pipeline opened; closing twice is allowed."""
        self._components.close()

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_function: GuidanceFunction | None = None,
        cache_interval: tuple[float, float] | None = None,
        image: ImageInput | Sequence[ImageInput] | None = None,
        strength: float | None = None,
        mask_image: ImageInput | None = None,
        resize_mode: str = "stretch",
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        noise_device: str = "cpu",
        latents: np.ndarray | None = None,
        prompt_embeds: Embeds | None = None,
        negative_prompt_embeds: np.ndarray | None = None,
        pooled_prompt_embeds: np.ndarray | None = None,
        negative_pooled_prompt_embeds: np.ndarray | None = None,
        prompt_weights: bool = False,
        clip_skip: int = 0,
        token_embeds: TokenEmbeds | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        scheduler: str | None = None,
        eta: float = 0.0,
        on_step: Callable[[DenoiseStep], object] | None = None,
    ) -> Result:
        """Generate images.

        Args:
          prompt, negative_prompt: one text, or one for each image. Without a negative prompt SDXL
            takes zeros as negative embeddings, which is not the same as "".
          height, width: pixels, multiples of the package's downscale (8); default the size of
            `image`, rounded down, or else the package's.
          num_inference_steps: 1 or more, at most as many as the scheduler was trained with; default
            50, for latent consistency models 4.
          timesteps, sigmas: instead of a number of steps, for schedulers that take them.
          guidance_scale: 0 or more; up to 1 no unconditional pass is run. Default 7.5, for SDXL
            without a mask 5, for latent consistency models (which take it as an input) 8.5.
          guidance_rescale, guidance_interval, guidance_function: see Guidance.
          cache_interval: (start, end) as fractions of the steps; between them every second step
            reuses the prediction of the step before. Faster and not exact; see docs/experiments.md.
          image: image to start from, or one for each prompt: a file, Pillow image or array.
          strength: 0..1, how far `image` is changed; default 0.8, with a mask 1, for SDXL 0.3 and
            0.9999.
          mask_image: bright where new content is generated.
          resize_mode: how image and mask are brought to the size: "stretch", "crop" or "fill".
          seed: one for the whole batch (like one torch generator), a list with one for each image,
            or None for random ones; 0 is a seed.
          noise_device: "cpu" or "cuda": whose torch generator is reproduced.
          latents: (B, C, H/8, W/8) float32 standard normal noise to start from, instead of a seed.
          prompt_embeds, negative_prompt_embeds: (1 or B, n, width) float32 instead of texts;
            prompt_embeds may be a function from (step index, number of steps) to such an array.
          pooled_prompt_embeds, negative_pooled_prompt_embeds: (1 or B, width) float32, which SDXL
            needs in addition.
          prompt_weights: read "(word:1.3)" and similar, and prompts of any length; see
            prompt_weights.py. Otherwise brackets are text and 75 tokens are the limit.
          clip_skip: layers of the text encoder to leave out at its end; as in diffusers, for the
            prompt and not for the negative prompt.
          token_embeds: replacements for words before the text encoder, such as
            {"puppy": {"puppy": 0.5, "skunk": 0.5}}; see sdexport.runtime.text.token_embeds.
          original_size, crops_coords_top_left, target_size, aesthetic_score,
            negative_aesthetic_score: SDXL's size conditioning; sizes are (height, width), default
            the image's own.
          scheduler: one of sdexport.schedulers.NAMES; default the package's own.
          eta: for DDIM and TCD, 0..1.
          on_step: called after every step.
        Raises: InvalidArgumentError: an argument out of range. MissingDependencyError: the backend
          is not installed. EngineError: a component failed, or its output is not finite.
        """
        arguments = dict(locals())  # what is recorded in the images
        defaults = self.defaults(image=image is not None, mask=mask_image is not None)
        scale = _or(guidance_scale, defaults.guidance_scale)
        guidance = self._family.guidance(
            Guidance(scale, guidance_rescale, guidance_interval, guidance_function)
        )
        if cache_interval is not None:
            checks.interval("cache_interval", cache_interval)
        checks.function("on_step", on_step)
        prompts, negatives = inputs.prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
        )
        if token_embeds is not None and prompt_embeds is not None:
            raise InvalidArgumentError(
                "token_embeds change a prompt, not prompt_embeds; give one of them"
            )
        self._family.check_task(image=image is not None, mask=mask_image is not None)
        images = inputs.image_inputs(
            image,
            mask_image,
            height,
            width,
            resize_mode,
            default_size=self.package.manifest.default_size,
            unit=self._space.downscale,
            count=len(prompts),
        )
        plan = plan_timesteps(
            _or(scheduler, self.default_scheduler),
            self.package.scheduler_config,
            _or(num_inference_steps, defaults.num_inference_steps),
            _or(strength, defaults.strength),
            has_image=images.image is not None,
            eta=eta,
            timesteps=timesteps,
            sigmas=sigmas,
        )
        noise = Noise(seed, len(prompts), noise_device)
        shape = (len(prompts), *self.latent_shape(images.height, images.width))
        if latents is not None:
            checks.float_array("latents", latents, shape)
        sizes = SizeConditioning.checked(
            original_size or (images.height, images.width),
            target_size or (images.height, images.width),
            crops_coords_top_left,
            aesthetic_score,
            negative_aesthetic_score,
        )

        clock = [time.perf_counter()]
        embeds, pooled = prepare_embeds(
            partial(
                self.text_encoders.encode,
                prompt_weights=prompt_weights,
                clip_skip=clip_skip,
                token_embeds=token_embeds,
            ),
            prompts,
            negatives if guidance.is_guided else None,
            EmbedArguments(
                prompt_embeds,
                negative_prompt_embeds,
                pooled_prompt_embeds,
                negative_pooled_prompt_embeds,
            ),
            zeros=negative_prompt is None
            and self._family.zeros_without_negative_prompt(self.package.model_index),
        )
        conditioning = self._conditioning(pooled, sizes, scale, len(prompts), guidance)
        start = self._initial_latents(images, noise, shape, plan, latents)
        clock.append(time.perf_counter())
        steps = self._denoise(
            start, embeds, plan.scheduler, guidance, noise.draw, conditioning, cache_interval
        )
        denoised = _last_latents(steps, on_step)
        clock.append(time.perf_counter())
        pixels = self.decode(denoised)
        clock.append(time.perf_counter())
        parameters = image_parameters(
            arguments, prompts, negatives, images, plan, noise, scale, self.settings
        )
        return Result.from_pixels(pixels, denoised, parameters, clock)

    def like(self, source: Any, **changes: Any) -> Result:
        """Generate an image again from the settings that it carries.

        With the same package and backend the image is the same. What differs is named in one
        warning. An image that was part of a batch is generated with its whole batch.

        Args:
          source: an image file that sdexport wrote, a Pillow image, or Parameters. Input images are
            looked for in the file's folder and in the current one.
          changes: arguments of a call, instead of the recorded ones.
        Returns: a result of one image.
        Raises: InvalidArgumentError: no image with settings, or one that depends on something that
          they do not hold, such as latents; give it among the changes.
        Example:
            >>> from sdexport import load_pipeline, save_image
            >>> with load_pipeline("package") as pipe:
            ...     result = pipe("a red circle", seed=3, num_inference_steps=4)
            ...     save_image(result.images[0], "circle.png")
            ...     again = pipe.like("circle.png")
            ...     other = pipe.like("circle.png", seed=4)
            >>> again.images[0].tobytes() == result.images[0].tobytes()
            True
        """
        parameters = parameters_of(source)
        arguments = arguments_like(parameters, changes, folder_of(source))
        name = str(source) if isinstance(source, (str, PathLike)) else "image"
        warn_of_differences(name, differences(parameters, self.settings, arguments))
        return self(**arguments).only(parameters.batch_index)

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

    @property
    def default_scheduler(self) -> str:
        """The package's own scheduler if it is known here, else DDIM."""
        return timestep_plan.default_scheduler(self.package.scheduler_config)

    def defaults(self, *, image: bool = False, mask: bool = False) -> Defaults:
        """Default arguments of a call with or without an image and a mask."""
        return self._family.defaults(image=image, mask=mask)

    def scheduler(
        self,
        name: str,
        num_inference_steps: int,
        *,
        eta: float = 0.0,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Scheduler:
        """A scheduler on the package's configuration; see sdexport.runtime.schedulers.create."""
        config = self.package.scheduler_config
        return timestep_plan.make_scheduler(
            name, config, num_inference_steps, eta=eta, timesteps=timesteps, sigmas=sigmas
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H/8, W/8) of the latents of an image of (height, width) pixels."""
        return self._space.shape(height, width)

    def encode(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str] | None = None,
        *,
        prompt_weights: bool = False,
        clip_skip: int = 0,
        token_embeds: TokenEmbeds | None = None,
    ) -> np.ndarray:
        """Text embeddings, the negative ones first if there are any.

        Args:
          prompt_weights, clip_skip, token_embeds: see `__call__`.
        Returns: (B, n, width) float32, or (2B, n, width) with negatives; n is 77, or a multiple of
          it for long prompts with weights.
        Raises: InvalidArgumentError: not valid Unicode; a clip_skip that the package has no output
          for; token_embeds that do not fit.
        """
        above = checks.strings("negatives", negatives or [])
        return self.text_encoders.encode(
            [*above, *checks.strings("prompts", prompts)],
            len(above),
            prompt_weights=prompt_weights,
            clip_skip=clip_skip,
            token_embeds=token_embeds,
        ).embeds

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
        space, name = self._space, self._family.vae_decoder
        checks.float_array("latents", latents, (None, space.channels, None, None))
        tile = None if self.vae_tile is None else self.vae_tile // space.downscale
        parts = []
        for rows in chunks(len(latents), self.max_batch):
            sample = vae.decode(self.session(name), space.to_vae(latents[rows]), tile=tile)
            parts.append(to_uint8(finite(sample, name, "the latents")))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _conditioning(
        self,
        pooled: np.ndarray | None,
        sizes: SizeConditioning,
        guidance_scale: float,
        count: int,
        guidance: Guidance,
    ) -> dict[str, np.ndarray]:
        """The values of the family's conditioning inputs that the denoiser's graph has."""
        request = ConditioningRequest(
            count,
            guidance.is_guided,
            guidance_scale,
            sizes,
            scored=bool(self.package.model_index.get("requires_aesthetics_score")),
            pooled=pooled,
        )
        specs = self.session(self._family.denoiser).inputs
        return conditioning_values(self._family.conditioning, specs, request)

    def _denoise(
        self,
        start: InitialLatents,
        embeds: Embeds,
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

    def _initial_latents(
        self,
        images: ImageInputs,
        noise: Noise,
        shape: tuple[int, int, int, int],
        plan: TimestepPlan,
        latents: np.ndarray | None,
    ) -> InitialLatents:
        posterior = True
        if images.image is not None:
            encoder = self.session(self._family.vae_encoder)
            posterior = self._space.is_posterior(encoder.outputs[0].shape[1])
        return initial_latents(
            images,
            noise,
            shape,
            plan.first_step,
            self.encode_image,
            latents=latents,
            space=self._space,
            masked_input=self._family.masked_input,
            posterior=posterior,
        )


def _or(value: Any, default: Any) -> Any:
    """A value, or the default if it is None."""
    return default if value is None else value


def _last_latents(
    loop: Generator[DenoiseStep], on_step: Callable[[DenoiseStep], object] | None
) -> np.ndarray:
    """Run the loop to its end; what `on_step` does to a step's arrays changes nothing."""
    with closing(loop) as steps:
        for step in steps:
            latents = step.latents if on_step is None else step.latents.copy()
            if on_step is not None:
                on_step(step)
    return latents


def load_pipeline(
    folder: str | Path, backend: Backends = "onnxruntime", *, verify: bool = True, **options: Any
) -> Pipeline:
    """Load a package to generate images with it.

    Args:
      folder: a package, or a folder that Optimum exported.
      backend: "onnxruntime", "openvino", "auto" and others; see Pipeline.
      verify: compare every file with its SHA-256 first.
      options: of Pipeline (max_batch, vae_tile, low_memory), and of the backends' sessions
        (threads, engine_dir).
    Raises: FileNotFoundError, PackageError: see Package.load. InvalidArgumentError: an unknown
      backend. A backend that is not installed raises an error when it is first used.

    Example:
        >>> from sdexport import load_pipeline
        >>> with load_pipeline("package") as pipe:
        ...     image = pipe("a red circle", num_inference_steps=2, seed=0).images[0]
        >>> image.size
        (128, 128)
    """
    return Pipeline(Package.load(folder, verify=verify), backend, **options)
