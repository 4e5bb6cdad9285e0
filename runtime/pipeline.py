"""Text to image, image to image and inpainting: encode, denoise, decode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines import Session
from sdexport.engines.closing import ClosesOnExit
from sdexport.engines.messages import shown
from sdexport.runtime import checks, inputs, schedulers
from sdexport.runtime.backend_choice import Backends
from sdexport.runtime.component_sessions import Components, chunks, finite
from sdexport.runtime.denoise import DenoiseStep, Draw, denoise
from sdexport.runtime.guidance import Guidance, GuidanceFunction
from sdexport.runtime.images import vae
from sdexport.runtime.images.loading import ImageInput
from sdexport.runtime.images.pixels import to_uint8
from sdexport.runtime.initial_latents import Start, start
from sdexport.runtime.inputs import MAX_SIDE, Course, Given, Noise
from sdexport.runtime.models.defaults import Defaults
from sdexport.runtime.models.family import Kind
from sdexport.runtime.models.unet_inputs import Sizes
from sdexport.runtime.packages.package import Package
from sdexport.runtime.result import Result, describe
from sdexport.runtime.schedulers import Scheduler
from sdexport.runtime.text.conditioning import Embeds, GivenEmbeds, condition
from sdexport.runtime.text.token_embeds import TokenEmbeds
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.runtime.text_encoders import TextEncoders

MAX_STEPS = 100_000
DEFAULT_SCHEDULER = "ddim"


class Pipeline(ClosesOnExit):
    """Paints with the sessions of a package; usable from several threads, and a context manager.

    Args:
      package: a checked package.
      backend: one for all components, or {"unet": "openvino", "*": "auto"}; see backend_choice.py.
      options: of the backends' sessions, for when components are first needed.
      sessions: components that are open already; they stay the caller's to close.
      max_batch: pictures that a component is given at once; None gives it all of them. Bounds the
        memory of a large batch and changes nothing else.
      vae_tile: side in pixels of the tiles in which the VAE works on larger pictures; None lets it
        work on the whole. Bounds memory; colours may shift a little from tile to tile.
      low_memory: hold one component in memory at a time; each is opened when it is needed.
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
            raise ValueError(f"vae_tile must be a multiple of {unit}, got {vae_tile}")
        self.package = package
        self.max_batch, self.vae_tile = max_batch, vae_tile
        self._components = Components(
            package, backend, options, sessions or {}, low_memory=low_memory
        )
        self._kind = Kind(package, self.session)
        self.text_encoders = TextEncoders(package, self.session)

    @property
    def tokenizer(self) -> ClipTokenizer:
        """That of the first text encoder."""
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
        """Paint pictures.

        Args:
          prompt, negative_prompt: one text, or one for each picture. Without a negative prompt
            SDXL is given zeros, which is not the same as "".
          height, width: pixels, multiples of the package's downscale (8); default those of
            `image`, rounded down, or else the package's.
          num_inference_steps: 1 or more, as many as the scheduler was trained with at most;
            default 50, for latent consistency models 4.
          timesteps, sigmas: instead of a number of steps, for schedulers that take them.
          guidance_scale: 0 or more; up to 1 no unconditional pass is run. Default 7.5, for SDXL 5
            without a mask, for latent consistency models, which are told it, 8.5.
          guidance_rescale, guidance_interval, guidance_function: see Guidance.
          cache_interval: (start, end) as fractions of the steps; between them every second step
            takes the prediction of the one before. Faster, and not exact; see docs/experiments.md.
          image: picture to begin from, or one for each prompt: any file, mode or size.
          strength: 0..1, how much of `image` is given up; default 0.8, with a mask 1, for SDXL 0.3
            and 0.9999.
          mask_image: bright where `image` is painted anew.
          resize_mode: how image and mask get to the size: "stretch", "crop" or "fill".
          seed: one for the whole batch (as one torch generator), a list with one for each picture,
            or None to draw some; 0 is a seed.
          noise_device: "cpu" or "cuda": whose torch generator the noise is equal to.
          latents: (B, C, H/8, W/8) float32 standard normal noise to start from, instead of a seed.
          prompt_embeds, negative_prompt_embeds: (1 or B, n, width) float32 instead of the texts;
            for prompt_embeds also a function from a step index to such an array.
          prompt_weights: read "(word:1.3)" and its kin, and prompts of any length; see
            text.prompt_weights. Otherwise brackets are text and 75 tokens are the limit.
          pooled_prompt_embeds, negative_pooled_prompt_embeds: (1 or B, width) float32, which SDXL
            needs beside the others.
          clip_skip: layers of the text encoder to leave out at its end; as in diffusers, for the
            prompt and not for the negative one.
          token_embeds: what takes the place of words before the text encoder, such as
            {"puppy": {"puppy": 0.5, "skunk": 0.5}}; see sdexport.runtime.text.token_embeds.
          original_size, crops_coords_top_left, target_size, aesthetic_score,
            negative_aesthetic_score: what SDXL is told of the picture; sizes are (height, width),
            default the picture's own.
          scheduler: one of sdexport.runtime.schedulers.NAMES; default the package's own.
          eta: for DDIM and TCD, 0..1.
          on_step: called after every step.
        Raises: ValueError: an argument out of range. EngineError: a component failed or gave
          numbers that are not finite.
        """
        usual = self.defaults(image=image is not None, mask=mask_image is not None)
        scale = usual.guidance_scale if guidance_scale is None else guidance_scale
        steps = usual.num_inference_steps if num_inference_steps is None else num_inference_steps
        strength = usual.strength if strength is None else strength
        guidance = self._kind.guidance(
            scale, guidance_rescale, guidance_interval, guidance_function
        )
        if cache_interval is not None:
            checks.interval("cache_interval", cache_interval)
        checks.function("on_step", on_step)
        prompts, negatives = inputs.prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
        )
        if token_embeds is not None and prompt_embeds is not None:
            raise ValueError("token_embeds change a prompt, not prompt_embeds; give one of them")
        given = self._kind.given(image, mask_image, height, width, resize_mode, len(prompts))
        course = self._course(scheduler, steps, strength, given, eta, timesteps, sigmas)
        source = Noise(seed, len(prompts), noise_device)
        shape = (len(prompts), *self.latent_shape(given.height, given.width))
        if latents is not None:
            checks.float_array("latents", latents, shape)
        sizes = Sizes.checked(
            original_size or (given.height, given.width),
            target_size or (given.height, given.width),
            crops_coords_top_left,
            aesthetic_score,
            negative_aesthetic_score,
        )

        clock = [time.perf_counter()]
        embeds, pooled = condition(
            partial(
                self.text_encoders.encode,
                prompt_weights=prompt_weights,
                clip_skip=clip_skip,
                token_embeds=token_embeds,
            ),
            prompts,
            negatives if guidance.is_guided else None,
            GivenEmbeds(
                prompt_embeds,
                negative_prompt_embeds,
                pooled_prompt_embeds,
                negative_pooled_prompt_embeds,
            ),
            zeros=negative_prompt is None and self._kind.takes_zeros,
        )
        further = self._kind.conditions(pooled, sizes, scale, len(prompts), guidance)
        beginning = self._start(given, source, shape, course.begin, latents)
        clock.append(time.perf_counter())
        loop = self._denoise(
            beginning, embeds, course.scheduler, guidance, source.draw, further, cache_interval
        )
        painted = _last_latents(loop, on_step)
        clock.append(time.perf_counter())
        pixels = self.decode(painted)
        clock.append(time.perf_counter())
        parameters = describe(
            prompts,
            negatives,
            given,
            course,
            source,
            guidance_scale=scale,
            eta=eta,
            model=self.package.folder.resolve().name,
            drawn=latents is None or seed is not None,
        )
        return Result.of(pixels, painted, parameters, clock)

    @property
    def default_scheduler(self) -> str:
        """The package's own scheduler if it is known here, else DDIM."""
        named = str(self.package.scheduler_config.get("_class_name", ""))
        return schedulers.canonical_name(named) or DEFAULT_SCHEDULER

    def defaults(self, *, image: bool = False, mask: bool = False) -> Defaults:
        """What is taken for arguments that are not given, painting from nothing, image or mask."""
        return self._kind.defaults(image=image, mask=mask)

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
        if not isinstance(name, str):
            raise ValueError(f"scheduler must be a name, got {shown(name)}")
        checks.integer("num_inference_steps", num_inference_steps, 1, MAX_STEPS)
        checks.number("eta", eta, 0, 1)
        options: dict[str, Any] = {"timesteps": timesteps, "sigmas": sigmas}
        options = {key: value for key, value in options.items() if value is not None}
        steps = None if options else num_inference_steps  # else they are as many as are given
        short = schedulers.canonical_name(name)
        if short and "eta" in schedulers.option_names(short):
            options["eta"] = eta  # 0 too: TCD's own default is another one
        elif eta and short:
            raise ValueError(f"scheduler '{name}' takes no eta; only ddim and tcd do")
        return schedulers.create(name, self.package.scheduler_config, steps, **options)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H/8, W/8) for a picture of that size."""
        manifest = self.package.manifest
        return manifest.latent_channels, height // manifest.downscale, width // manifest.downscale

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
        Raises: ValueError: not valid Unicode; a clip_skip that the package has no output for;
          token_embeds that do not fit.
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

        Raises: ValueError: an array of another kind, or sides that are no multiples of the
          package's downscale. EngineError: the encoder failed.
        """
        unit, session = self.package.manifest.downscale, self.session("vae_encoder")
        checks.float_array("pixels", pixels, (None, 3, None, None))
        if not pixels.size or pixels.shape[2] % unit or pixels.shape[3] % unit:
            raise ValueError(f"pixels: sides must be multiples of {unit}, got {pixels.shape}")
        parts = [
            vae.encode(session, pixels[rows], tile=self.vae_tile, downscale=unit)
            for rows in chunks(len(pixels), self.max_batch)
        ]
        return finite(np.concatenate(parts), "vae_encoder", "the picture")

    def denoise(
        self,
        latents: np.ndarray,
        prompt_embeds: Embeds,
        scheduler: Scheduler,
        *,
        guidance_scale: float = 7.5,
        guidance: Guidance | None = None,
        conditions: Mapping[str, np.ndarray] | None = None,
        draw: Draw | None = None,
        cache_interval: tuple[float, float] | None = None,
    ) -> Generator[DenoiseStep]:
        """Turn noise into clean latents, yielding after every step.

        Leaving the loop early, closing the generator or Ctrl-C stops at once; the sessions can be
        used on.

        Args:
          latents: (B, C, H/8, W/8) float32 standard normal noise.
          prompt_embeds: from `encode`, with negatives exactly if guidance_scale > 1; or a function
            from (step index, number of steps) to such arrays.
          guidance: instead of guidance_scale.
          conditions: further inputs of the UNet; see sdexport.runtime.models.unet_inputs.
          draw: gives fresh noise of a shape, for schedulers that take some.
          cache_interval: as for a whole picture.
        Raises: ValueError: arrays do not fit. EngineError: the UNet failed or gave numbers that
          are not finite.
        """
        guidance = guidance or Guidance(guidance_scale)
        channels = self.package.manifest.latent_channels
        checks.float_array("latents", latents, (None, channels, None, None))
        begin = Start(latents)
        return self._denoise(
            begin, prompt_embeds, scheduler, guidance, draw, conditions, cache_interval
        )

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pixels of clean latents (B, C, H/8, W/8) float32: (B, H, W, 3) uint8.

        Raises: ValueError: an array of another kind. EngineError: the decoder failed.
        """
        manifest, session = self.package.manifest, self.session("vae_decoder")
        checks.float_array("latents", latents, (None, manifest.latent_channels, None, None))
        tile = None if self.vae_tile is None else self.vae_tile // manifest.downscale
        parts = []
        for rows in chunks(len(latents), self.max_batch):
            latent_sample = latents[rows] / np.float32(manifest.scaling_factor)
            sample = vae.decode(session, latent_sample, tile=tile)
            parts.append(to_uint8(finite(sample, "vae_decoder", "the latents")))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _denoise(
        self,
        start: Start,
        embeds: Embeds,
        scheduler: Scheduler,
        guidance: Guidance,
        draw: Draw | None,
        further: Mapping[str, np.ndarray] | None,
        cache_interval: tuple[float, float] | None,
    ) -> Generator[DenoiseStep]:
        return denoise(
            self.session("unet"),
            start,
            embeds,
            scheduler,
            guidance=guidance,
            conditions=further,
            prediction_type=self.package.manifest.prediction_type,
            draw=draw,
            max_batch=self.max_batch,
            cache_interval=cache_interval,
        )

    def _course(
        self,
        name: str | None,
        steps: int,
        strength: float | None,
        given: Given,
        eta: float,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
    ) -> Course:
        """The scheduler that was asked for, and where on it the pictures begin."""
        name = self.default_scheduler if name is None else name
        sampler = self.scheduler(name, steps, eta=eta, timesteps=timesteps, sigmas=sigmas)
        if timesteps is not None or sigmas is not None:
            steps = math.ceil(len(sampler.timesteps) / sampler.order)
        begin, strength = inputs.begin(steps, sampler, strength, given)
        return Course(schedulers.canonical_name(name) or name, sampler, steps, begin, strength)

    def _start(
        self,
        given: Given,
        source: Noise,
        shape: tuple[int, int, int, int],
        begin: int,
        latents: np.ndarray | None,
    ) -> Start:
        return start(
            given,
            source,
            shape,
            begin,
            self.encode_image,
            latents=latents,
            scaling_factor=self.package.manifest.scaling_factor,
            inpaints=self._kind.inpaints,
            draws=given.image is None or self._kind.draws_posterior,
        )


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
    """Load a package for painting.

    Args:
      verify: compare every file with its SHA-256 first.
      options: of Pipeline (max_batch, vae_tile, low_memory), and of the backends' sessions
        (threads, engine_dir).
    Raises: FileNotFoundError, PackageError: see Package.load. ImportError: the backend is not
      installed.
    """
    return Pipeline(Package.load(folder, verify=verify), backend, **options)
