"""The loop that turns noise into clean latents, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sdexport.engines import Session
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.composition import ComposedPredictor
from sdexport.runtime.guidance import Guidance, GuidanceFunction, GuidanceState, within
from sdexport.runtime.initial_latents import InitialLatents
from sdexport.runtime.loop_state import LoopState
from sdexport.runtime.predictor import Predictor
from sdexport.runtime.schedulers import Scheduler, StepResult
from sdexport.runtime.text.prompt_conditions import PromptConditions
from sdexport.runtime.text.prompt_embeds import Embeds

Draw = Callable[[Sequence[int]], np.ndarray]
"""Returns standard normal noise of a shape, float32."""


@dataclass(frozen=True)
class DenoiseStep:
    """The state after one step.

    index: of the step, from 0; an input image leaves out the first ones. count: of all steps.
    latents: (B, C, H/8, W/8) float32, a copy. pred_original_sample: the clean latents that the step
    predicted, same shape; some samplers compute them when the attribute is first read. state: the
    loop's own, which changes the steps that follow.
    """

    index: int
    count: int
    timestep: float
    latents: np.ndarray
    _result: StepResult = field(repr=False)
    state: LoopState | None = field(default=None, repr=False)

    @property
    def pred_original_sample(self) -> np.ndarray:
        """The clean latents that the step predicted, (B, C, H/8, W/8) float32."""
        return self._result.pred_original_sample


def denoise(
    unet: Session,
    start: InitialLatents,
    prompt_embeds: Embeds | PromptConditions,
    scheduler: Scheduler,
    *,
    guidance: Guidance,
    conditioning: Mapping[str, np.ndarray] | None = None,
    draw: Draw | None = None,
    max_batch: int | None = None,
    cache_interval: tuple[float, float] | None = None,
) -> Generator[DenoiseStep]:
    """Run the scheduler's steps from `start`, and yield the state after each.

    Args:
      unet: inputs sample, timestep and encoder_hidden_states, output out_sample.
      start: the latents before the first step, and which steps are run.
      prompt_embeds: (B, n, width) float32; or, if `guidance.is_guided`, (2B, n, width), the
        unconditional half first. A function of (step index, steps) may return them.
      scheduler: built for one generation; see sdexport.runtime.schedulers.
      guidance: classifier-free guidance and the guidance function.
      conditioning: more inputs of the UNet, a row for each row of prompt_embeds.
      draw: returns fresh noise; required by schedulers that take noise.
      max_batch: how many images one call of the UNet may take; None for all.
      cache_interval: (start, end) as fractions of the steps, 0 to 1; between them every second step
        reuses the prediction of the step before. Faster, and not exact.
    Raises: InvalidArgumentError: wrong number of embeddings, or the guidance function returned no
      latents. EngineError: the UNet failed or returned NaN or infinity.
    """
    if cache_interval is not None:
        checks.interval("cache_interval", cache_interval)
    steps = len(scheduler.timesteps)
    state = LoopState(
        steps, start.latents(scheduler), prompt_embeds, conditioning or {}, guidance, start
    )
    composed = isinstance(prompt_embeds, PromptConditions)
    predictor = (ComposedPredictor if composed else Predictor)(unet, state, max_batch)
    cached: np.ndarray | None = None  # the prediction of the step before, if it ran the UNet
    try:
        for i in start.steps(scheduler):
            timestep = float(scheduler.timesteps[i])
            if cached is not None and cache_interval and within(cache_interval, i, steps):
                noise_pred, cached = cached, None
            else:
                sample = scheduler.scale_model_input(state.latents, i)
                noise_pred = cached = predictor(sample, timestep, i)
            latents = state.latents
            if state.guidance.function is not None:
                latents = _apply_guidance_function(
                    state.guidance.function, i, timestep, latents, noise_pred, scheduler
                )
            noise = draw(latents.shape) if draw and scheduler.takes_noise(i) else None
            result = scheduler.step(noise_pred, i, latents, noise)
            state.latents = state.start.outside_mask_restored(result.prev_sample, scheduler, i)
            # a copy, as the next step reads these latents
            yield DenoiseStep(i, steps, timestep, state.latents.copy(), result, state)
            if state.interrupted:
                return
    finally:
        predictor.close()


def _apply_guidance_function(
    function: GuidanceFunction,
    i: int,
    timestep: float,
    latents: np.ndarray,
    noise_pred: np.ndarray,
    scheduler: Scheduler,
) -> np.ndarray:
    """The latents that the guidance function returns, or `latents` if it returns None."""
    one, zero = np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1, 1))
    alpha: float = scheduler.add_noise(one, zero, i).item()
    sigma: float = scheduler.add_noise(zero, one, i).item()
    weights = scheduler.original_weights(i)
    original = weights.sample * latents + weights.noise_pred * noise_pred
    level = sigma / alpha if alpha else math.inf
    state = GuidanceState(i, timestep, level, latents.copy(), noise_pred.copy(), original)
    changed = function(state)
    if changed is None:
        return latents
    changed = np.asarray(changed)
    if changed.shape != latents.shape or changed.dtype.kind not in "fiu":
        raise InvalidArgumentError(
            f"guidance_function: expected latents {latents.dtype} {latents.shape}, "
            f"got {shown(changed)}"
        )
    changed = changed.astype(latents.dtype)
    if not np.isfinite(changed).all():
        raise InvalidArgumentError(
            f"guidance_function: NaN or infinity at step {i}; return finite latents"
        )
    return changed
