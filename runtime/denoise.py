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
from sdexport.runtime.component_sessions import chunks, finite
from sdexport.runtime.guidance import Guidance, GuidanceFunction, GuidanceState, within
from sdexport.runtime.initial_latents import InitialLatents
from sdexport.runtime.schedulers import Scheduler, StepResult
from sdexport.runtime.text.prompt_embeds import Embeds

Draw = Callable[[Sequence[int]], np.ndarray]
"""Returns standard normal noise of a shape, float32."""


@dataclass(frozen=True)
class DenoiseStep:
    """The state after one step.

    index: of the step, from 0; an input image leaves out the first ones. count: of all steps.
    latents: (B, C, H/8, W/8) float32, a copy. pred_original_sample: the clean latents that the step
    predicted, same shape; some samplers compute them when the attribute is first read.
    """

    index: int
    count: int
    timestep: float
    latents: np.ndarray
    _result: StepResult = field(repr=False)

    @property
    def pred_original_sample(self) -> np.ndarray:
        """The clean latents that the step predicted, (B, C, H/8, W/8) float32."""
        return self._result.pred_original_sample


def denoise(
    unet: Session,
    start: InitialLatents,
    prompt_embeds: Embeds,
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
      start: the latents before the first step, and the index of that step.
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
    latents, steps = start.latents(scheduler), len(scheduler.timesteps)
    if cache_interval is not None:
        checks.interval("cache_interval", cache_interval)
    cached: np.ndarray | None = None  # the prediction of the step before, if it ran the UNet
    predictor = _Predictor(unet, guidance, conditioning or {}, max_batch)
    try:
        for i in range(start.first_step, steps):
            timestep = float(scheduler.timesteps[i])
            sample = scheduler.scale_model_input(latents, i)
            sample = start.denoiser_input(sample)
            embeds = prompt_embeds(i, steps) if callable(prompt_embeds) else prompt_embeds
            guided = guidance.is_guided_at(i, steps)
            if cached is not None and cache_interval and within(cache_interval, i, steps):
                noise_pred, cached = cached, None
            else:
                noise_pred = cached = predictor(sample, timestep, embeds, guided, f"step {i}")
            if guidance.function is not None:
                latents = _apply_guidance_function(
                    guidance.function, i, timestep, latents, noise_pred, scheduler
                )
            noise = draw(latents.shape) if draw and scheduler.takes_noise(i) else None
            result = scheduler.step(noise_pred, i, latents, noise)
            latents = start.outside_mask_restored(result.prev_sample, scheduler, i)
            # a copy, as the next step reads these latents
            yield DenoiseStep(i, steps, timestep, latents.copy(), result)
    finally:
        predictor.close()


class _Predictor:
    """The guided prediction for all images; the inputs that stay constant are bound once."""

    def __init__(
        self,
        unet: Session,
        guidance: Guidance,
        conditioning: Mapping[str, np.ndarray],
        max_batch: int | None,
    ) -> None:
        self._unet, self._guidance, self._max_batch = unet, guidance, max_batch
        self._conditioning = conditioning
        self._time_spec = next(spec for spec in unet.inputs if spec.name == "timestep")
        self._embeds: np.ndarray | None = None
        self._bound: dict[tuple[int, bool], Session] = {}

    def __call__(
        self, sample: np.ndarray, timestep: float, embeds: np.ndarray, guided: bool, where: str
    ) -> np.ndarray:
        count = len(sample)
        if embeds is not self._embeds:
            self._check(embeds, count)
            self.close()
            self._embeds = embeds
        time = np.full((1,) * len(self._time_spec.shape), timestep, self._time_spec.dtype)
        parts = []
        for rows in chunks(count, self._max_batch):
            unet = self._session(embeds, rows, count, guided)
            feeds = {"sample": sample[rows], "timestep": time}
            noise_pred = finite(unet.run(feeds)["out_sample"], unet.name, where)
            parts.append(self._guidance.combine(noise_pred) if guided else noise_pred)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _session(self, embeds: np.ndarray, rows: slice, count: int, guided: bool) -> Session:
        key = rows.start, guided
        if key not in self._bound:

            def rows_of(values: np.ndarray) -> np.ndarray:
                conditional = values[len(values) - count :][rows]
                return np.concatenate([values[rows], conditional]) if guided else conditional

            inputs = {"encoder_hidden_states": embeds, **self._conditioning}
            shared = ("sample",) if guided else ()  # by the unconditional and conditional half
            constants = {name: rows_of(values) for name, values in inputs.items()}
            self._bound[key] = self._unet.bind(shared=shared, **constants)
        return self._bound[key]

    def _check(self, embeds: np.ndarray, count: int) -> None:
        checks.float_array("prompt_embeds", embeds, (None, None, None))
        each = 2 if self._guidance.is_guided else 1
        if len(embeds) != count * each:
            raise InvalidArgumentError(
                f"prompt_embeds: expected {'two rows' if each == 2 else 'one row'} for each of "
                f"{count} images at guidance_scale {self._guidance.scale:g}, "
                f"got {len(embeds)} rows"
            )

    def close(self) -> None:
        """Release the bound inputs."""
        for session in self._bound.values():
            session.close()
        self._bound.clear()


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
