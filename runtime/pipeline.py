"""Text to image, image to image and inpainting: encode, denoise, decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from engines import Session
from runtime import checks, inputs, schedulers, vae
from runtime import prompt as prompt_text
from runtime.backends import Backends
from runtime.components import Components, chunks, finite
from runtime.denoise import DenoiseStep, Draw, Embeds, Start, denoise
from runtime.guidance import Guidance, GuidanceFunction
from runtime.image import ImageInput, Parameters, to_image, to_uint8
from runtime.inputs import MAX_SIDE, EachStep, Given, Noise
from runtime.package import Package
from runtime.schedulers import Scheduler

MAX_STEPS = 100_000
DEFAULT_SCHEDULER = "ddim"


@dataclass(frozen=True)
class Result:
    """What a call of the pipeline gives.

    images: Pillow images, each with its parameters in `info["parameters"]`.
    latents: (B, C, H/8, W/8) float32, as decoded.
    parameters: one entry an image.
    seconds: time spent in each stage: encode, denoise, decode.
    """

    images: list[Image.Image]
    latents: np.ndarray
    parameters: list[Parameters]
    seconds: Mapping[str, float]


class Pipeline:
    """Paints with the sessions of a package; usable from several threads, and a context manager.

    Args:
      package: a checked package.
      backend: one for all components, or {"unet": "openvino", "*": "auto"}; see runtime.backends.
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
            checks.whole("max_batch", max_batch, 1, 2**31)
        if vae_tile is not None and checks.whole("vae_tile", vae_tile, 8 * unit, MAX_SIDE) % unit:
            raise ValueError(f"vae_tile must be a multiple of {unit}, got {vae_tile}")
        self.package = package
        self.tokenizer = package.tokenizer()
        self.max_batch, self.vae_tile = max_batch, vae_tile
        self._components = Components(
            package, backend, options, sessions or {}, low_memory=low_memory
        )

    def session(self, component: str) -> Session:
        """The open session of a component.

        Raises: PackageError: the package has no such component. EngineError: it cannot be opened,
          or the pipeline is closed.
        """
        return self._components[component]

    def close(self) -> None:
        """Close every session that the pipeline opened; closing twice is allowed."""
        self._components.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_function: GuidanceFunction | None = None,
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
        prompt_weights: bool = False,
        clip_skip: int = 0,
        scheduler: str | None = None,
        eta: float = 0.0,
        on_step: Callable[[DenoiseStep], object] | None = None,
    ) -> Result:
        """Paint pictures.

        Args:
          prompt, negative_prompt: one text, or one for each picture.
          height, width: pixels, multiples of the package's downscale (8); default those of
            `image`, rounded down, or else the package's.
          num_inference_steps: 1..1000.
          timesteps, sigmas: instead of a number of steps, for schedulers that take them.
          guidance_scale: 0 or more; up to 1 no unconditional pass is run.
          guidance_rescale, guidance_interval, guidance_function: see Guidance.
          image: picture to begin from, or one for each prompt: any file, mode or size.
          strength: 0..1, how much of `image` is given up; default 0.8, with a mask 1.
          mask_image: bright where `image` is painted anew.
          resize_mode: how image and mask get to the size: "stretch", "crop" or "fill".
          seed: one for the whole batch (as one torch generator), a list with one for each picture,
            or None to draw some; 0 is a seed.
          noise_device: "cpu" or "cuda": whose torch generator the noise is equal to.
          latents: (B, C, H/8, W/8) float32 standard normal noise to start from, instead of a seed.
          prompt_embeds, negative_prompt_embeds: (1 or B, n, width) float32 instead of the texts;
            for prompt_embeds also a function from a step index to such an array.
          prompt_weights: read "(word:1.3)" and its kin, and prompts of any length; see
            runtime.prompt. Otherwise brackets are text and 75 tokens are the limit.
          clip_skip: layers of the text encoder to leave out at its end, 0..2.
          scheduler: one of runtime.schedulers.NAMES; default the package's own.
          eta: for DDIM and TCD, 0..1.
          on_step: called after every step.
        Raises: ValueError: an argument out of range. EngineError: a component failed or gave
          numbers that are not finite.
        """
        guidance = Guidance(guidance_scale, guidance_rescale, guidance_interval, guidance_function)
        prompts, negatives = inputs.prompts(
            prompt, negative_prompt, prompt_embeds, num_images_per_prompt
        )
        given = self._given(image, mask_image, height, width, resize_mode)
        name = scheduler or self.default_scheduler
        sampler = self.scheduler(
            name, num_inference_steps, eta=eta, timesteps=timesteps, sigmas=sigmas
        )
        custom = timesteps is not None or sigmas is not None
        steps = len(sampler.timesteps) if custom else num_inference_steps
        begin, strength = inputs.begin(steps, sampler.order, strength, given)
        source = Noise(seed, len(prompts), noise_device)

        clock = [time.perf_counter()]
        embeds = self._embeds(
            prompts,
            negatives if guidance.is_guided else None,
            prompt_embeds,
            negative_prompt_embeds,
            weights=prompt_weights,
            clip_skip=clip_skip,
        )
        start = self._start(given, source, latents, len(prompts), begin)
        clock.append(time.perf_counter())
        for step in self._denoise(start, embeds, sampler, guidance, source.draw):
            if on_step is not None:
                on_step(step)
        clock.append(time.perf_counter())
        pixels = self.decode(step.latents)
        clock.append(time.perf_counter())

        drawn = latents is None or seed is not None
        parameters = [
            Parameters(
                prompt=text,
                negative_prompt=negative,
                num_inference_steps=steps,
                scheduler=schedulers.canonical_name(name) or name,
                guidance_scale=float(guidance_scale),
                seed=number if drawn else None,
                width=given.width,
                height=given.height,
                model=self.package.folder.resolve().name,
                eta=eta,
                strength=strength,
                batch_size=1 if source.each else len(prompts),
                batch_index=0 if source.each else index,
            )
            for index, (text, negative, number) in enumerate(
                zip(prompts, negatives, source.seeds, strict=True)
            )
        ]
        return Result(
            images=[to_image(p, q) for p, q in zip(pixels, parameters, strict=True)],
            latents=step.latents,
            parameters=parameters,
            seconds=dict(
                zip(("encode", "denoise", "decode"), np.diff(clock).tolist(), strict=True)
            ),
        )

    @property
    def default_scheduler(self) -> str:
        """The package's own scheduler if it is known here, else DDIM."""
        named = str(self.package.scheduler_config.get("_class_name", ""))
        return schedulers.canonical_name(named) or DEFAULT_SCHEDULER

    def scheduler(
        self,
        name: str,
        num_inference_steps: int,
        *,
        eta: float = 0.0,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Scheduler:
        """A scheduler on the package's configuration; see runtime.schedulers.create."""
        checks.whole("num_inference_steps", num_inference_steps, 1, MAX_STEPS)
        options: dict[str, Any] = {"timesteps": timesteps, "sigmas": sigmas}
        options = {key: value for key, value in options.items() if value is not None}
        short = schedulers.canonical_name(name)
        if short and "eta" in schedulers.option_names(short):
            options["eta"] = eta  # 0 too: TCD's own default is another one
        elif eta and short:
            raise ValueError(f"scheduler '{name}' takes no eta; only ddim and tcd do")
        return schedulers.create(
            name, self.package.scheduler_config, num_inference_steps, **options
        )

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
    ) -> np.ndarray:
        """Text embeddings, the negative ones first if there are any.

        Args:
          prompt_weights, clip_skip: see `__call__`.
        Returns: (B, n, width) float32, or (2B, n, width) with negatives; n is 77, or a multiple of
          it for long prompts with weights.
        Raises: ValueError: not valid Unicode; a clip_skip that the package has no output for.
        """
        texts = [*(negatives or ()), *prompts]
        output = self._text_output(clip_skip)
        text_encoder = self.session("text_encoder")
        dtype = text_encoder.inputs[0].dtype

        def hidden_states(input_ids: np.ndarray) -> np.ndarray:
            parts = [
                text_encoder.run({"input_ids": input_ids[rows].astype(dtype)})[output]
                for rows in chunks(len(input_ids), self.max_batch)
            ]
            return finite(np.concatenate(parts), "text_encoder", "the prompt")

        how = prompt_text.encode_weighted if prompt_weights else prompt_text.encode_plain
        return how(self.tokenizer, hidden_states, texts)

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        """The VAE's posterior of pixels (B, 3, H, W) float32 in -1..1; see runtime.vae.encode."""
        session = self.session("vae_encoder")
        parts = [
            vae.encode(session, pixels[rows], tile=self.vae_tile)
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
        draw: Draw | None = None,
    ) -> Iterator[DenoiseStep]:
        """Turn noise into clean latents, yielding after every step.

        Leaving the loop early, closing the generator or Ctrl-C stops at once; the sessions can be
        used on.

        Args:
          latents: (B, C, H/8, W/8) float32 standard normal noise.
          prompt_embeds: from `encode`, with negatives exactly if guidance_scale > 1; or a function
            from (step index, number of steps) to such arrays.
          guidance: instead of guidance_scale.
          draw: gives fresh noise of a shape, for schedulers that take some.
        Raises: ValueError: arrays do not fit. EngineError: the UNet failed or gave numbers that
          are not finite.
        """
        guidance = guidance or Guidance(guidance_scale)
        return self._denoise(Start(latents), prompt_embeds, scheduler, guidance, draw)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pixels of clean latents, (B, H, W, 3) uint8."""
        manifest, session = self.package.manifest, self.session("vae_decoder")
        unit = manifest.downscale
        tile = None if self.vae_tile is None else self.vae_tile // unit
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
    ) -> Iterator[DenoiseStep]:
        return denoise(
            self.session("unet"),
            start,
            embeds,
            scheduler,
            guidance=guidance,
            prediction_type=self.package.manifest.prediction_type,
            draw=draw,
            max_batch=self.max_batch,
        )

    def _text_output(self, clip_skip: int) -> str:
        names = {f"clip_skip.{n}": n for n in range(1, 12)}
        outputs = [spec.name for spec in self.session("text_encoder").outputs]
        able = [0, *(names[name] for name in outputs if name in names)]
        if clip_skip not in able:
            raise ValueError(
                f"clip_skip must be one of {', '.join(map(str, able))} with this package, "
                f"got {clip_skip!r:.20}"
            )
        return f"clip_skip.{clip_skip}" if clip_skip else "last_hidden_state"

    def _embeds(
        self,
        prompts: list[str],
        negatives: list[str] | None,
        prompt_embeds: Embeds | None,
        negative_prompt_embeds: np.ndarray | None,
        *,
        weights: bool,
        clip_skip: int,
    ) -> Embeds:
        """What `denoise` asks for, from texts or embeddings."""
        if prompt_embeds is None and negative_prompt_embeds is None:
            return self.encode(prompts, negatives, prompt_weights=weights, clip_skip=clip_skip)
        count = len(prompts)

        def of_texts(texts: list[str]) -> np.ndarray:
            return self.encode(texts, prompt_weights=weights, clip_skip=clip_skip)

        positive = of_texts(prompts) if prompt_embeds is None else prompt_embeds
        if negatives is None:
            if callable(positive):
                return EachStep(positive, None, count)
            return inputs.rows("prompt_embeds", positive, count)
        if negative_prompt_embeds is None:
            negative_prompt_embeds = of_texts(negatives)
        negative = inputs.rows("negative_prompt_embeds", negative_prompt_embeds, count)
        if callable(positive):
            return EachStep(positive, negative, count)
        return inputs.joined(negative, inputs.rows("prompt_embeds", positive, count))

    def _given(
        self,
        source: ImageInput | Sequence[ImageInput] | None,
        mask: ImageInput | None,
        height: int | None,
        width: int | None,
        resize_mode: str,
    ) -> Given:
        """Pictures and mask that were given, at the size that will be painted."""
        if self._inpaints() and mask is None:
            raise ValueError("this package paints into pictures: give image and mask_image")
        manifest = self.package.manifest
        return inputs.given(
            source, mask, height, width, resize_mode, manifest.default_size, manifest.downscale
        )

    def _inpaints(self) -> bool:
        """Whether the UNet has channels for mask and masked picture."""
        spec = next(s for s in self.session("unet").inputs if s.name == "sample")
        return spec.shape[1] == 2 * self.package.manifest.latent_channels + 1

    def _start(
        self, given: Given, source: Noise, latents: np.ndarray | None, count: int, begin: int
    ) -> Start:
        """Noise and the latents of what was given, drawn in the order in which diffusers draws."""
        shape = (count, *self.latent_shape(given.height, given.width))
        if latents is not None and (latents.shape != shape or latents.dtype != np.float32):
            raise ValueError(
                f"latents: expected float32 {shape}, got {latents.dtype} {latents.shape}"
            )
        original = masked = mask = None
        inpaints = self._inpaints()
        if given.image is not None and not (inpaints and begin == 0):
            original = self._latents_of(given.image, source, count)
        noise = source.draw(shape) if latents is None else latents
        if given.image is not None and given.mask is not None:
            unit = self.package.manifest.downscale
            mask = np.ascontiguousarray(given.mask[:, :, ::unit, ::unit])
            if inpaints:
                masked = self._latents_of(given.image * (given.mask < 0.5), source, count)
            else:  # diffusers draws for this too, though the UNet does not look at it
                source.draw_rows(len(given.image), shape[1:])
        return Start(noise, begin, original, mask, masked)

    def _latents_of(self, pixels: np.ndarray, source: Noise, count: int) -> np.ndarray:
        if count % len(pixels):
            raise ValueError(f"got {len(pixels)} images for {count} pictures")
        moments = self.encode_image(pixels)
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        repeats = count // len(pixels)
        if source.each:
            moments = np.repeat(moments, repeats, axis=0)
        drawn = vae.sample_posterior(moments, source.draw_rows(len(pixels), shape))
        if not source.each:
            drawn = np.repeat(drawn, repeats, axis=0)
        scaled: np.ndarray = drawn * np.float32(self.package.manifest.scaling_factor)
        return scaled


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
