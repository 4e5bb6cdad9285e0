"""Text to image: encode the prompt, denoise latents, decode the picture."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from engines import EngineError, Session
from runtime import guidance, image, schedulers
from runtime.noise import TorchGenerator, check_seed
from runtime.package import Package
from runtime.schedulers import Scheduler

MAX_SIDE = 16384
DEFAULT_SCHEDULER = "ddim"


@dataclass(frozen=True)
class DenoiseStep:
    """The state after one step; arrays are (B, C, H/8, W/8) float32 and belong to the receiver."""

    index: int
    timestep: float
    latents: np.ndarray
    pred_original_sample: np.ndarray


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
    parameters: list[image.Parameters]
    seconds: Mapping[str, float]


class Pipeline:
    """Paints with the sessions of a package; usable from several threads, and a context manager.

    Args:
      package: a checked package.
      backend, options: how components are opened, when they are first needed.
      sessions: components that are open already; they stay the caller's to close.
    """

    def __init__(
        self,
        package: Package,
        backend: str = "onnxruntime",
        *,
        sessions: Mapping[str, Session] | None = None,
        **options: Any,
    ) -> None:
        self.package = package
        self.tokenizer = package.tokenizer()
        self._backend, self._options = backend, options
        self._given = dict(sessions or {})
        self._opened: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._closed = False

    def session(self, component: str) -> Session:
        """The open session of a component.

        Raises: PackageError: the package has no such component. EngineError: it cannot be opened,
          or the pipeline is closed.
        """
        with self._lock:
            if self._closed:
                raise EngineError("the pipeline is closed; load it again")
            if component in self._given:
                return self._given[component]
            if component not in self._opened:
                self._opened[component] = self.package.open(
                    component, self._backend, **self._options
                )
            return self._opened[component]

    def close(self) -> None:
        """Close every session that the pipeline opened; closing twice is allowed."""
        with self._lock:
            self._closed = True
            for session in self._opened.values():
                session.close()
            self._opened.clear()

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
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        latents: np.ndarray | None = None,
        scheduler: str | None = None,
        eta: float = 0.0,
        on_step: Callable[[DenoiseStep], None] | None = None,
    ) -> Result:
        """Paint pictures.

        Args:
          prompt, negative_prompt: one text, or one for each picture.
          height, width: pixels, multiples of the package's downscale (8); default the package's.
          num_inference_steps: 1..1000.
          guidance_scale: 0 or more; up to 1 no unconditional pass is run.
          seed: one for the whole batch (as one torch generator), a list with one for each picture,
            or None to draw some; 0 is a seed.
          latents: (B, C, H/8, W/8) float32 standard normal noise to start from, instead of a seed.
          scheduler: one of runtime.schedulers.NAMES; default the package's own.
          eta: for DDIM and TCD, 0..1.
          on_step: called after every step.
        Raises: ValueError: an argument out of range. EngineError: a component failed or gave
          numbers that are not finite.
        """
        prompts, negatives = self._prompts(prompt, negative_prompt, num_images_per_prompt)
        height, width = self._size(height, width)
        if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
            raise ValueError(f"num_inference_steps must be an integer, got {num_inference_steps!r}")
        if not guidance_scale >= 0 or not np.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be 0 or more, got {guidance_scale}")
        name = scheduler or self.default_scheduler
        sampler = self.scheduler(name, num_inference_steps, eta=eta)
        seeds, draw = _noise_source(seed, len(prompts))
        shape = (len(prompts), *self.latent_shape(height, width))
        if latents is None:
            latents = draw(shape)
        elif latents.shape != shape or latents.dtype != np.float32:
            raise ValueError(
                f"latents: expected float32 {shape}, got {latents.dtype} {latents.shape}"
            )
        else:
            seeds = [None] * len(prompts) if seed is None else seeds

        clock = [time.perf_counter()]
        embeds = self.encode(prompts, negatives if guidance.is_guided(guidance_scale) else None)
        clock.append(time.perf_counter())
        for step in self.denoise(
            latents, embeds, sampler, guidance_scale=guidance_scale, draw=draw
        ):
            if on_step is not None:
                on_step(step)
        clock.append(time.perf_counter())
        pixels = self.decode(step.latents)
        clock.append(time.perf_counter())

        parameters = [
            image.Parameters(
                prompt=text,
                negative_prompt=negative,
                num_inference_steps=num_inference_steps,
                scheduler=schedulers.canonical_name(name) or name,
                guidance_scale=float(guidance_scale),
                seed=number,
                width=width,
                height=height,
                model=self.package.folder.resolve().name,
            )
            for text, negative, number in zip(prompts, negatives, seeds, strict=True)
        ]
        return Result(
            images=[image.to_image(p, q) for p, q in zip(pixels, parameters, strict=True)],
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

    def scheduler(self, name: str, num_inference_steps: int, *, eta: float = 0.0) -> Scheduler:
        """A scheduler on the package's configuration; see runtime.schedulers.create."""
        short = schedulers.canonical_name(name)
        options = {"eta": eta} if short and "eta" in schedulers.option_names(short) else {}
        if eta and short and not options:
            raise ValueError(f"scheduler '{name}' takes no eta; only ddim and tcd do")
        return schedulers.create(
            name, self.package.scheduler_config, num_inference_steps, **options
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H/8, W/8) for a picture of that size."""
        manifest = self.package.manifest
        return manifest.latent_channels, height // manifest.downscale, width // manifest.downscale

    def encode(self, prompts: Sequence[str], negatives: Sequence[str] | None = None) -> np.ndarray:
        """Text embeddings, the negative ones first if there are any.

        Returns: (B, 77, width) float32, or (2B, 77, width) with negatives.
        """
        input_ids = self.tokenizer([*(negatives or ()), *prompts])
        text_encoder = self.session("text_encoder")
        ids = input_ids.astype(text_encoder.inputs[0].dtype)
        embeds = text_encoder.run({"input_ids": ids})["last_hidden_state"]
        return _finite(embeds, "text_encoder", "the prompt")

    def denoise(
        self,
        latents: np.ndarray,
        prompt_embeds: np.ndarray,
        scheduler: Scheduler,
        *,
        guidance_scale: float = 7.5,
        draw: Callable[[Sequence[int]], np.ndarray] | None = None,
    ) -> Iterator[DenoiseStep]:
        """Turn noise into clean latents, yielding after every step.

        Args:
          latents: (B, C, H/8, W/8) float32 standard normal noise.
          prompt_embeds: from `encode`, with negatives exactly if guidance_scale > 1.
          draw: gives fresh noise of a shape, for schedulers that take some.
        Raises: EngineError: the UNet failed or gave numbers that are not finite.
        """
        guided = guidance.is_guided(guidance_scale)
        if len(prompt_embeds) != len(latents) * (2 if guided else 1):
            raise ValueError(
                f"prompt_embeds: expected {'two rows' if guided else 'one row'} for each of "
                f"{len(latents)} pictures at guidance_scale {guidance_scale}, "
                f"got {len(prompt_embeds)} rows"
            )
        unet = self.session("unet")
        time_spec = next(spec for spec in unet.inputs if spec.name == "timestep")
        latents = latents * np.float32(scheduler.init_noise_sigma)
        with unet.bind(encoder_hidden_states=prompt_embeds) as bound:
            for i, timestep in enumerate(scheduler.timesteps):
                sample = scheduler.scale_model_input(latents, i)
                feeds = {
                    "sample": np.concatenate([sample, sample]) if guided else sample,
                    "timestep": np.full((1,) * len(time_spec.shape), timestep, time_spec.dtype),
                }
                noise_pred = _finite(bound.run(feeds)["out_sample"], "unet", f"step {i}")
                if guided:
                    noise_pred = guidance.combine(noise_pred, guidance_scale)
                noise = draw(latents.shape) if draw and scheduler.takes_noise(i) else None
                result = scheduler.step(noise_pred, i, latents, noise)
                latents = result.prev_sample
                # the next step reads these latents, so the receiver gets a copy
                yield DenoiseStep(i, float(timestep), latents.copy(), result.pred_original_sample)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pixels of clean latents, (B, H, W, 3) uint8."""
        latent_sample = latents / np.float32(self.package.manifest.scaling_factor)
        decoded = self.session("vae_decoder").run({"latent_sample": latent_sample})["sample"]
        return image.to_uint8(_finite(decoded, "vae_decoder", "the latents"))

    def _prompts(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        num_images_per_prompt: int,
    ) -> tuple[list[str], list[str]]:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or num_images_per_prompt < 1:
            raise ValueError("expected at least one prompt and one image for it")
        if negative_prompt is None or isinstance(negative_prompt, str):
            negatives = [negative_prompt or ""] * len(prompts)
        else:
            negatives = list(negative_prompt)
        if len(negatives) != len(prompts):
            raise ValueError(f"got {len(prompts)} prompts and {len(negatives)} negative prompts")
        repeat = range(num_images_per_prompt)
        return [p for p in prompts for _ in repeat], [n for n in negatives for _ in repeat]

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        unit = self.package.manifest.downscale
        default_height, default_width = self.package.manifest.default_size
        height = default_height if height is None else height
        width = default_width if width is None else width
        for name, side in (("height", height), ("width", width)):
            if not isinstance(side, int) or not unit <= side <= MAX_SIDE or side % unit:
                raise ValueError(
                    f"{name} must be a multiple of {unit} from {unit} to {MAX_SIDE}, got {side}"
                )
        return height, width


def load_pipeline(
    folder: str | Path, backend: str = "onnxruntime", *, verify: bool = True, **options: Any
) -> Pipeline:
    """Load a package for painting.

    Args:
      verify: compare every file with its SHA-256 first.
      options: for the backend's sessions, such as `threads`.
    Raises: FileNotFoundError, PackageError: see Package.load. ImportError: the backend is not
      installed.
    """
    return Pipeline(Package.load(folder, verify=verify), backend, **options)


def _noise_source(
    seed: int | Sequence[int] | None, count: int
) -> tuple[list[int | None], Callable[[Sequence[int]], np.ndarray]]:
    """The seed of each picture, and a function that draws noise for all of them."""
    if seed is None:
        first = secrets.randbits(32)
        seed = [(first + i) % 2**32 for i in range(count)]
    if isinstance(seed, Sequence):
        if len(seed) != count:
            raise ValueError(f"got {len(seed)} seeds for {count} pictures")
        generators = [TorchGenerator(number) for number in seed]

        def draw_each(shape: Sequence[int]) -> np.ndarray:
            return np.concatenate([g.randn((1, *shape[1:])) for g in generators])

        return list(seed), draw_each
    check_seed(seed)
    return [seed] * count, TorchGenerator(seed).randn


def _finite(values: np.ndarray, component: str, where: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise EngineError(f"{component}: NaN or infinity came out for {where}")
    return values
