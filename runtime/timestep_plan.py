"""Which scheduler runs, with how many steps, and at which step an image starts."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks, schedulers
from sdexport.runtime.schedulers import Scheduler

logger = logging.getLogger(__name__)
MAX_STEPS = 100_000
DEFAULT_SCHEDULER = "ddim"
"""Used where a configuration names a scheduler that is not known here."""


@dataclass(frozen=True)
class TimestepPlan:
    """The steps of a pipeline call.

    name: of the scheduler. first_step: index of the first of its timesteps that is run. strength:
    0..1, where that comes from; None without an input image, or with denoising_start. end_step:
    index of the first timestep that is not run any more; None runs all. is_noised: whether an input
    image gets the noise of the first step.
    """

    name: str
    scheduler: Scheduler
    num_inference_steps: int
    first_step: int
    strength: float | None
    end_step: int | None = None
    is_noised: bool = True

    @property
    def steps(self) -> range:
        """Indices of the timesteps that are run."""
        end = len(self.scheduler.timesteps) if self.end_step is None else self.end_step
        return range(self.first_step, end)

    @property
    def is_pure_noise(self) -> bool:
        """Whether inpainting starts from noise alone."""
        return self.first_step == 0 and self.is_noised


@dataclass(frozen=True)
class ImageShare:
    """Which part of the steps is run, from the arguments of a pipeline call.

    strength: 0..1, how far an input image is changed. denoising_start, denoising_end: fractions of
    the training timesteps, from noise to clean; see plan_timesteps. shortens: whether the strength
    shortens the schedule instead of leaving out its beginning, as latent consistency models do.
    """

    strength: float | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    shortens: bool = False

    @classmethod
    def checked(
        cls,
        strength: float | None,
        denoising_start: float | None,
        denoising_end: float | None,
        *,
        default: float | None,
        shortens: bool,
    ) -> Self:
        """From the arguments of a pipeline call.

        Args:
          default: strength of the task.
        Raises: InvalidArgumentError: both say where to start.
        """
        if denoising_start is not None and strength is not None:
            raise InvalidArgumentError("expected either a strength or a denoising_start")
        strength = default if strength is None else strength
        return cls(strength, denoising_start, denoising_end, shortens)


def default_scheduler(config: Mapping[str, Any]) -> str:
    """The scheduler that a scheduler_config.json names if it is known here, else DDIM."""
    return schedulers.canonical_name(str(config.get("_class_name", ""))) or DEFAULT_SCHEDULER


def make_scheduler(
    name: str,
    config: Mapping[str, Any],
    num_inference_steps: int,
    *,
    eta: float = 0.0,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    original_inference_steps: int | None = None,
    strength: float | None = None,
) -> Scheduler:
    """A scheduler on a configuration; see sdexport.runtime.schedulers.create.

    Raises: InvalidArgumentError: an unknown name, or an option that the scheduler does not have.
    """
    if not isinstance(name, str):
        raise InvalidArgumentError(f"scheduler must be a name, got {shown(name)}")
    checks.integer("num_inference_steps", num_inference_steps, 1, MAX_STEPS)
    checks.number("eta", eta, 0, 1)
    lists: dict[str, Any] = {"timesteps": timesteps, "sigmas": sigmas}
    options: dict[str, Any] = {
        **lists,
        "original_inference_steps": original_inference_steps,
        "strength": strength,
    }
    options = {key: value for key, value in options.items() if value is not None}
    # a list says how many steps there are
    steps = None if any(key in options for key in lists) else num_inference_steps
    short = schedulers.canonical_name(name)
    if short and "eta" in schedulers.option_names(short):
        options["eta"] = eta  # 0 too: TCD's own default is another
    elif eta and short:
        raise InvalidArgumentError(f"scheduler '{name}' has no eta; only ddim and tcd do")
    distilled = "original_inference_steps"
    if short and distilled in options and distilled not in schedulers.option_names(short):
        raise InvalidArgumentError(f"scheduler '{name}' has no {distilled}; only lcm and tcd do")
    return schedulers.create(name, config, steps, **options)


def plan_timesteps(
    name: str,
    config: Mapping[str, Any],
    num_inference_steps: int,
    share: ImageShare,
    *,
    has_image: bool,
    eta: float = 0.0,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    original_inference_steps: int | None = None,
) -> TimestepPlan:
    """The scheduler, and which of its steps are run.

    Raises: InvalidArgumentError: see `make_scheduler`; a strength without an image, or one that
      leaves no step to run.
    """
    strength = _checked_strength(share, has_image=has_image)
    own = timesteps is not None or sigmas is not None
    shortens = share.shortens and strength is not None and not own and _takes_strength(name)
    scheduler = make_scheduler(
        name,
        config,
        num_inference_steps,
        eta=eta,
        timesteps=timesteps,
        sigmas=sigmas,
        original_inference_steps=original_inference_steps,
        strength=strength if shortens else None,
    )
    steps = num_inference_steps
    if timesteps is not None or sigmas is not None or getattr(scheduler.config, "schedule", None):
        steps = math.ceil(len(scheduler.timesteps) / scheduler.order)
    if scheduler.inverts:
        return _inverse_plan(name, scheduler, steps, share, strength)
    first_step = 0
    if share.denoising_start is not None:
        first_step = _step_of("denoising_start", share.denoising_start, scheduler)
    elif strength is not None and not shortens:
        first_step = _first_step(steps, scheduler, strength)
    if first_step and scheduler.leaves_noise:
        logger.warning(
            "scheduler '%s' leaves noise in an image that it starts from, as in diffusers; set its "
            "key restart_history, or choose another scheduler",
            name,
        )
    return TimestepPlan(
        schedulers.canonical_name(name) or name,
        scheduler,
        steps,
        first_step,
        strength,
        _end_step(share, scheduler, first_step),
        is_noised=share.denoising_start is None,
    )


def _inverse_plan(
    name: str, scheduler: Scheduler, steps: int, share: ImageShare, strength: float | None
) -> TimestepPlan:
    """The first steps from clean latents to noise, as many as the strength says."""
    if share.denoising_start is not None or share.denoising_end is not None:
        raise InvalidArgumentError(
            f"scheduler '{name}' goes from an image to noise; it takes no denoising_start or "
            "denoising_end, but strength"
        )
    end = None
    if strength is not None:
        end = len(scheduler.timesteps) - _first_step(steps, scheduler, strength)
    found = schedulers.canonical_name(name) or name
    return TimestepPlan(found, scheduler, steps, 0, strength, end, is_noised=False)


def _takes_strength(name: str) -> bool:
    short = schedulers.canonical_name(name) if isinstance(name, str) else None
    return short is not None and "strength" in schedulers.option_names(short)


def _checked_strength(share: ImageShare, *, has_image: bool) -> float | None:
    """The strength, None where it has no effect."""
    if share.denoising_start is not None:
        if not 0 < checks.number("denoising_start", share.denoising_start, 0, 1) < 1:
            raise InvalidArgumentError(
                f"denoising_start must be between 0 and 1, got {share.denoising_start}"
            )
        if not has_image:
            raise InvalidArgumentError("denoising_start needs an image to start from")
        return None
    if not has_image:
        if share.strength is not None:
            raise InvalidArgumentError("strength needs an image to start from")
        return None
    return checks.number("strength", share.strength, 0, 1)


def _first_step(steps: int, scheduler: Scheduler, strength: float) -> int:
    """Index of the first timestep that is run at a strength."""
    kept = min(int(steps * strength), steps)
    if kept < 1:
        raise InvalidArgumentError(
            f"strength {strength:g} leaves none of {steps} steps; give at least {1 / steps:.3g}"
        )
    return (steps - kept) * scheduler.order


def _step_of(name: str, fraction: float, scheduler: Scheduler) -> int:
    """Index of the first timestep below a fraction of the training timesteps, as in diffusers."""
    below = int((scheduler.timesteps < _cutoff(name, fraction, scheduler)).sum())
    if scheduler.order == 2 and below % 2 == 0:
        below += 1  # so that a step with two calls of the UNet is not cut in half
    if below < 1:
        raise InvalidArgumentError(
            f"{name} {fraction:g} leaves no step to run; take more steps or a smaller fraction"
        )
    return len(scheduler.timesteps) - below


def _end_step(share: ImageShare, scheduler: Scheduler, first_step: int) -> int | None:
    """Index of the first timestep after denoising_end."""
    start, end = share.denoising_start, share.denoising_end
    if end is None:
        return None
    cutoff = _cutoff("denoising_end", end, scheduler)
    if start is not None and start >= end:
        raise InvalidArgumentError(
            f"denoising_start must be below denoising_end, got {start:g} and {end:g}"
        )
    if end == 1:
        return None
    count = int((scheduler.timesteps[first_step:] >= cutoff).sum())
    if count < 1:
        raise InvalidArgumentError(
            f"denoising_end {end:g} leaves no step to run; take more steps or a larger fraction"
        )
    return first_step + count


def _cutoff(name: str, fraction: float, scheduler: Scheduler) -> int:
    """The training timestep at a fraction of the way from noise to clean."""
    checks.number(name, fraction, 0, 1)
    total = scheduler.config.num_train_timesteps
    return round(total - fraction * total)
