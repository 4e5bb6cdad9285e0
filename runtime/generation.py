"""From a checked pipeline call to its images: encode, denoise, decode."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sdexport.engines.run_record import recorded_runs
from sdexport.runtime.adapters.call_adapters import CallAdapters
from sdexport.runtime.denoise import DenoiseStep, denoise
from sdexport.runtime.expected_calls import ImageCall, is_short
from sdexport.runtime.guidance import Guidance
from sdexport.runtime.images.inpainting import pasted
from sdexport.runtime.initial_latents import InitialLatents, initial_latents
from sdexport.runtime.inputs import ImageInputs
from sdexport.runtime.models.conditioning import (
    SIZE_ARGUMENTS,
    ConditioningRequest,
    SizeConditioning,
    conditioning_values,
)
from sdexport.runtime.noise.image_noise import ImageNoise
from sdexport.runtime.pipeline_stages import PipelineStages
from sdexport.runtime.result import Result, image_parameters
from sdexport.runtime.safety_checker import SafetyChecker, blacked_out
from sdexport.runtime.step_callback import RunningCall, StepCallbacks
from sdexport.runtime.text.prompt_conditions import (
    PromptConditions,
    needs_negatives,
    prepare_prompts,
)
from sdexport.runtime.text.prompt_embeds import EmbedArguments, Embeds, Text
from sdexport.runtime.text.prompt_texts import StepRange
from sdexport.runtime.timestep_plan import TimestepPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedCall:
    """The arguments of a pipeline call, checked and turned into what the stages take.

    arguments: all, by name, as they are recorded in the images. prompts, negatives: the text of
    each image; texts, negative_texts: the same, or one text for each encoder. zeros: whether the
    negative embeddings are zeros. style: of the prompts. guidance_scale: the effective one.
    safety: what checks the images; None if nothing does.
    """

    arguments: Mapping[str, Any]
    prompts: Sequence[str]
    negatives: Sequence[str]
    texts: list[Text]
    negative_texts: list[Text]
    zeros: bool
    style: str
    guidance_scale: float
    guidance: Guidance
    images: ImageInputs
    plan: TimestepPlan
    noise: ImageNoise
    sizes: SizeConditioning
    callbacks: StepCallbacks
    adapters: CallAdapters
    safety: SafetyChecker | None = None

    @property
    def count(self) -> int:
        """Images to generate."""
        return len(self.prompts)


def generate(pipeline: PipelineStages, call: CheckedCall) -> Result:
    """Run the stages of a call.

    Raises: InvalidArgumentError: embeddings, or names of a callback's arrays, that do not fit.
      EngineError: a component failed, or its output is not finite. PackageError: a file of the
      package was altered.
    """
    with recorded_runs() as ran, closing(call.adapters):
        latents, decoded, detected, clock = _run_stages(pipeline, call)
    pipeline.package.check_hashes()  # of every file before an image is returned
    call.adapters.check_hashes()
    parameters = image_parameters(
        call.arguments,
        call.prompts,
        call.negatives,
        call.images,
        call.plan,
        call.noise,
        call.guidance_scale,
        pipeline.settings | {"engines": pipeline.components_in(ran)} | call.adapters.recorded,
    )
    return Result.from_decoded(decoded, latents, parameters, clock, detected)


def _run_stages(
    pipeline: PipelineStages, call: CheckedCall
) -> tuple[np.ndarray, np.ndarray | list[np.ndarray], list[bool] | None, list[float]]:
    """The latents, the images, which were flagged, and the time before and after each stage."""
    clock = [time.perf_counter()]
    expected = _expected(pipeline, call)
    pipeline.open_ahead(_opened_ahead(pipeline, call), expected)
    embeds, pooled = _encode(pipeline, call)
    pipeline.rest_text_encoders()
    if call.arguments["output_type"] != "latent":
        pipeline.open_decoder_meanwhile(call.adapters.graph, expected)
    guided = call.guidance.is_guided or needs_negatives(embeds)
    conditioning = _conditioning(pipeline, call, pooled, guided=guided)
    start = _initial_latents(pipeline, call)
    composed = isinstance(embeds, PromptConditions)
    call.callbacks.check(conditioning, start, composed=composed)
    clock.append(time.perf_counter())
    steps = denoise(
        call.adapters.denoiser(pipeline.session),
        start,
        embeds,
        call.plan.scheduler,
        guidance=call.guidance,
        conditioning=conditioning,
        draw=call.noise.draw,
        max_batch=pipeline.max_batch,
        cache_interval=call.arguments["cache_interval"],
    )
    latents = _last_latents(pipeline, call, steps)
    del steps  # which keeps the denoiser's session
    call.adapters.close()
    pipeline.finish_denoising()
    clock.append(time.perf_counter())
    samples = _decode(pipeline, latents, call.arguments["output_type"])
    samples, detected = blacked_out(samples, call.safety)
    decoded = pasted(samples, call.images.paste_back)
    clock.append(time.perf_counter())
    return latents, decoded, detected, clock


def _opened_ahead(pipeline: PipelineStages, call: CheckedCall) -> list[str]:
    """The components that run after the text encoder, in this order, up to the denoiser.

    The decoder would be in memory during the whole loop, and gains little; but see
    `open_decoder_meanwhile`.
    """
    family = pipeline.package.family
    encoder = [family.vae_encoder] if call.images.image is not None else []
    return [*encoder, *call.adapters.opened_ahead]


def _expected(pipeline: PipelineStages, call: CheckedCall) -> ImageCall | None:
    """How those are called, as far as it is known before the prompts are encoded; None if not."""
    given = call.arguments["prompt_embeds"] is not None or pipeline.vae_tile is not None
    if given or not all(map(is_short, (*call.texts, *call.negative_texts))):
        return None
    return ImageCall(
        call.images.height,
        call.images.width,
        min(call.count, pipeline.max_batch or call.count),
        guided=call.guidance.is_guided,
    )


def _encode(
    pipeline: PipelineStages, call: CheckedCall
) -> tuple[Embeds | PromptConditions, np.ndarray | None]:
    """The embeddings of the prompts, and the pooled ones."""
    arguments, plan = call.arguments, call.plan
    encoders = call.adapters.text_encoders(pipeline.text_encoders)
    return prepare_prompts(
        partial(
            encoders.encode,
            prompt_style=call.style,
            clip_skip=arguments["clip_skip"],
            token_embeds=arguments["token_embeds"],
        ),
        call.texts,
        call.negative_texts,
        EmbedArguments(
            arguments["prompt_embeds"],
            arguments["negative_prompt_embeds"],
            arguments["pooled_prompt_embeds"],
            arguments["negative_pooled_prompt_embeds"],
        ),
        StepRange(
            plan.steps,
            len(plan.scheduler.timesteps),
            plan.num_inference_steps,
            continues=not plan.is_noised,
        ),
        style=call.style,
        guided=call.guidance.is_guided,
        zeros=call.zeros,
        variants=encoders.image_variants,
    )


def _conditioning(
    pipeline: PipelineStages, call: CheckedCall, pooled: np.ndarray | None, *, guided: bool
) -> dict[str, np.ndarray]:
    """The values of the family's conditioning inputs that the denoiser's graph has."""
    family, index = pipeline.package.family, pipeline.package.model_index
    request = ConditioningRequest(
        call.count,
        guided,
        call.guidance_scale,
        call.sizes,
        scored=bool(index.get("requires_aesthetics_score")),
        pooled=pooled,
    )
    of_adapters = call.adapters.conditioning(guided=guided)  # while the denoiser may be opening
    call.adapters.open(_expected(pipeline, call))
    denoiser = call.adapters.denoiser(pipeline.session)
    found = conditioning_values(family.conditioning, denoiser.inputs, request) | of_adapters
    sizes = [
        name
        for name in SIZE_ARGUMENTS
        if call.arguments[name] not in (None, getattr(SizeConditioning, name, None))
    ]
    if sizes and "time_ids" not in found:
        logger.warning("%s: no effect, as the model takes no sizes; SDXL does", ", ".join(sizes))
    return found


def _initial_latents(pipeline: PipelineStages, call: CheckedCall) -> InitialLatents:
    """Noise and encoded images."""
    family, space = pipeline.package.family, pipeline.package.manifest.latent_space
    posterior = True
    if call.images.image is not None:
        encoder = pipeline.session(family.vae_encoder)
        posterior = space.is_posterior(encoder.outputs[0].shape[1])
    return initial_latents(
        call.images,
        call.noise,
        (call.count, *space.shape(call.images.height, call.images.width)),
        call.plan,
        pipeline.encode_image,
        latents=call.arguments["latents"],
        space=space,
        masked_input=family.masked_input,
        posterior=posterior,
    )


def _last_latents(
    pipeline: PipelineStages, call: CheckedCall, loop: Generator[DenoiseStep]
) -> np.ndarray:
    """Run the loop to its end; what `on_step` does to a step's arrays changes nothing."""
    on_step: Callable[[DenoiseStep], object] | None = call.arguments["on_step"]
    running: RunningCall | None = None
    with closing(loop) as steps:
        for step in steps:
            state = step.state
            latents = step.latents if on_step is None else step.latents.copy()
            if call.callbacks.function is not None and state is not None:
                running = running or RunningCall(
                    pipeline, state, call.plan.scheduler, call.guidance_scale
                )
                call.callbacks(running, step)
                latents = state.latents
            if on_step is not None:
                on_step(step)
    return latents


def _decode(pipeline: PipelineStages, latents: np.ndarray, output_type: str) -> np.ndarray:
    """(B, H, W, 3) uint8 for "pil" or float32 for "np"; the latents for "latent"."""
    if output_type == "latent":
        return latents
    decode = pipeline.decode if output_type == "pil" else pipeline.decode_to_float
    return decode(latents)
