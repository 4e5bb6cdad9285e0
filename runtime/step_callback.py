"""callback_on_step_end as in diffusers: what the function gets, and how its result is applied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.initial_latents import InitialLatents
from sdexport.runtime.loop_state import LoopState
from sdexport.runtime.schedulers import Scheduler

StepCallback = Callable[[Any, int, float, dict[str, Any]], dict[str, Any] | None]
"""Called as (call, step, timestep, arrays by name); returns the arrays to go on with, by name."""
NAME = "callback_on_step_end"
CONDITIONING = {
    "add_text_embeds": "text_embeds",
    "add_time_ids": "time_ids",
    "w_embedding": "timestep_cond",
}
"""diffusers' names of conditioning inputs, and those of the graph's inputs."""
_log = logging.getLogger(__name__)


class RunningCall:
    """The first argument of a callback: the pipeline, and the call that is running.

    All other attributes are those of the pipeline. diffusers' names with an underscore are there as
    well, `_guidance_scale` and `_interrupt`.

    Attributes:
      num_timesteps: steps that this call runs, for samplers with two calls of the UNet a step both.
      scheduler: of this call.
      guidance_scale: may be set for the steps that follow. At 1 or less there is no unconditional
        pass: arrays that the function changes must then have one row for each image, not two.
      interrupt: may be set to True: no further step is run, and the latents are decoded.
    """

    # no others: what a callback sets must have an effect
    __slots__ = ("_pipeline", "_scale", "_state", "num_timesteps", "scheduler")

    def __init__(
        self, pipeline: Any, state: LoopState, scheduler: Scheduler, guidance_scale: float
    ) -> None:
        self._pipeline, self._state, self.scheduler = pipeline, state, scheduler
        self._scale = guidance_scale
        self.num_timesteps = len(state.start.steps(scheduler))

    @property
    def guidance_scale(self) -> float:
        return self._scale

    @guidance_scale.setter
    def guidance_scale(self, value: float) -> None:
        guidance = replace(self._state.guidance, scale=value)  # checks the value
        self._state.guidance = self._pipeline.package.family.guidance(guidance)
        self._scale = value

    @property
    def interrupt(self) -> bool:
        return self._state.interrupted

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._state.interrupted = bool(value)

    _guidance_scale = guidance_scale
    _interrupt = interrupt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


class StepCallbacks:
    """Calls the caller's function after each step, and applies what it returns.

    Args:
      function: callback_on_step_end, or None.
      names: callback_on_step_end_tensor_inputs; None takes the function's `tensor_inputs`, which
        diffusers' own callbacks have, or else "latents".
    Raises: InvalidArgumentError: not a function; not a list of names.
    """

    def __init__(self, function: StepCallback | None, names: Sequence[str] | None) -> None:
        checks.function(NAME, function)
        if names is None:
            names = getattr(function, "tensor_inputs", ("latents",))
        self.function = function
        self.names = checks.strings(f"{NAME}_tensor_inputs", names)
        self._negative: np.ndarray | None = None

    def check(
        self, conditioning: Mapping[str, np.ndarray], start: InitialLatents, *, composed: bool
    ) -> None:
        """Raises: InvalidArgumentError: a name of an array that the call does not have."""
        known = array_names(conditioning, start, composed=composed)
        _check_names(f"{NAME}_tensor_inputs", self.names, known)

    def __call__(self, call: RunningCall, step: DenoiseStep) -> None:
        """Call the function after a step and change the loop's state.

        Raises: InvalidArgumentError: it returned no dict, or arrays that do not fit.
        """
        state = step.state
        if self.function is None or state is None:
            return
        known = array_names(state.conditioning, state.start, composed=state.is_composed)
        if step.index == state.start.first_step and "negative_prompt_embeds" in self.names:
            self._negative = _negative_embeds(state, step.index)
        before = {name: self._array(name, state, step) for name in self.names}
        given = {k: None if v is None else v.copy() for k, v in before.items()}
        index = step.index - state.start.first_step
        returned = self.function(call, index, step.timestep, dict(given))
        if not isinstance(returned, dict | None):
            raise InvalidArgumentError(
                f"{NAME} must return a dict of arrays or None, got {shown(returned)}"
            )
        _check_names(NAME, returned or (), known)
        decoded = "latents"
        if "denoised" in known and step.index + 1 == state.start.steps(call.scheduler).stop:
            decoded = "denoised"
        # what was changed in place counts as well, as in diffusers
        for name, value in {**given, **(returned or {})}.items():
            if not _same(value, before.get(name)):
                _apply(name, value, state, decoded=decoded)

    def _array(self, name: str, state: LoopState, step: DenoiseStep) -> np.ndarray | None:
        """An array after a step, with two rows for each image where diffusers has two."""
        if name == "latents":
            return step.latents
        if name == "denoised":
            return step.pred_original_sample
        if name in CONDITIONING:
            return state.conditioning[CONDITIONING[name]]
        if name == "negative_prompt_embeds":
            return self._negative
        if name == "prompt_embeds":
            return state.embeds_at(step.index)
        rows = state.start.mask if name == "mask" else state.start.masked
        assert rows is not None  # array_names
        rows = np.broadcast_to(rows, (len(state.latents), *rows.shape[1:]))
        return np.concatenate([rows, rows]) if state.guidance.is_guided else rows


def array_names(
    conditioning: Mapping[str, np.ndarray], start: InitialLatents, *, composed: bool
) -> list[str]:
    """Names of the arrays that a callback can have, as diffusers calls them.

    Args:
      composed: prompts that change from step to step, or have parts, are no single array.
    """
    further = [name for name, own in CONDITIONING.items() if own in conditioning]
    names = ["latents"] if composed else ["latents", "prompt_embeds"]
    if further == ["w_embedding"] and start.mask is None:  # latent consistency models
        names.append("denoised")
    elif "add_text_embeds" in further and composed:
        further.remove("add_text_embeds")
    elif "add_text_embeds" not in further and not composed:
        names.append("negative_prompt_embeds")
    names += further
    if start.mask is not None:
        names.append("mask")
    if start.masked is not None:
        names.append("masked_image_latents")
    return names


def _negative_embeds(state: LoopState, i: int) -> np.ndarray | None:
    """The first half of the embeddings, if there is an unconditional pass."""
    return state.embeds_at(i)[: len(state.latents)] if state.guidance.is_guided else None


def _check_names(what: str, names: Iterable[object], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InvalidArgumentError(
                f"{what}: no array {shown(name)} in this call; it has {', '.join(known)}"
            )


def _same(value: object, before: np.ndarray | None) -> bool:
    if value is None or before is None:
        return value is before
    return np.array_equal(np.asarray(value), before)


def _apply(name: str, value: object, state: LoopState, *, decoded: str) -> None:
    """Go on with another array.

    Args:
      decoded: which of "latents" and "denoised" the next step, or the decoder, starts from.
    """
    count = len(state.latents)
    if name in ("latents", "denoised"):
        array = _checked(name, value, state.latents.shape)
        if name == decoded:
            state.latents = array
    elif name == "negative_prompt_embeds":
        _log.warning(
            "%s: negative_prompt_embeds have no effect in the loop, as in diffusers; change the "
            "first half of prompt_embeds",
            NAME,
        )
    elif name == "prompt_embeds":
        width = state.embeds_at(state.start.first_step).shape[2]
        state.prompt_embeds = _rows(name, _checked(name, value, (None, None, width)), state)
    elif name in CONDITIONING:
        own = CONDITIONING[name]
        shape = state.conditioning[own].shape[1:]
        array = _rows(name, _checked(name, value, (None, *shape)), state)
        state.conditioning = {**state.conditioning, own: array}
    else:
        is_mask = name == "mask"
        before = state.start.mask if is_mask else state.start.masked
        assert before is not None  # array_names
        rows = _rows(name, _checked(name, value, (None, *before.shape[1:])), state)[-count:]
        start = state.start
        state.start = replace(start, mask=rows) if is_mask else replace(start, masked=rows)


def _checked(name: str, value: object, shape: Sequence[int | None]) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind in "fiu":
        array = array.astype(np.float32)
    return checks.float_array(f"{NAME}: {name}", array, shape)


def _rows(name: str, array: np.ndarray, state: LoopState) -> np.ndarray:
    """As many rows as the loop needs, from one row for all images or all rows."""
    count = len(state.latents)
    wanted = count * (2 if state.guidance.is_guided else 1)
    if len(array) == 1 and wanted == count:
        return np.repeat(array, count, axis=0)
    if len(array) != wanted:
        raise InvalidArgumentError(
            f"{NAME}: {name}: expected {wanted} rows at guidance_scale "
            f"{state.guidance.scale:g}, got {len(array)}"
        )
    return array
