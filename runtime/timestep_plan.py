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
from sdexport.runtime.scheduler_argument import SchedulerChoice
from sdexport.runtime.scheduler_record import names_of
from sdexport.runtime.schedulers import Scheduler
from sdexport.runtime.schedulers.level_schedules import LEVEL_SCHEDULES

logger = logging.getLogger(__name__)
MAX_STEPS = 100_000


@dataclass(frozen=True)
class TimestepPlan:
    """The steps of a pipeline call.

    first_step: index of the first of its timesteps that is run. strength: 0..1, where that comes
    from; None without an input image, or with denoising_start. end_step: index of the first
    timestep that is not run any more; None runs all. is_noised: whether an input image gets the
    noise of the first step. name, schedule, scheduler_options: arguments that choose the same
    scheduler again; see scheduler_record.py.
    """

    scheduler: Scheduler
    num_inference_steps: int
    first_step: int
    strength: float | None
    end_step: int | None = None
    is_noised: bool = True
    name: str = ""
    schedule: str | None = None
    scheduler_options: Mapping[str, Any] | None = None

    @property
    def steps(self) -> range:
        """Indices of the timesteps that are run."""
        end = len(self.scheduler.timesteps) if self.end_step is None else self.end_step
        return range(self.first_step, end)

    @property
    def counted_steps(self) -> int:
        """The number of steps of which diffusers takes fractions, for T2I-Adapters."""
        options = self.scheduler.options
        listed = any(options.get(key) is not None for key in ("timesteps", "sigmas"))
        is_part = self.first_step > 0 or self.end_step is not None
        return len(self.steps) if listed or is_part else self.num_inference_steps

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


def make_scheduler(
    choice: SchedulerChoice,
    num_inference_steps: int | None,
    *,
    eta: float = 0.0,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    original_inference_steps: int | None = None,
    strength: float | None = None,
) -> Scheduler:
    """The scheduler that a caller chose; see sdexport.runtime.schedulers.create.

    Args:
      num_inference_steps: may be None for one that is built already, which has its number.
    Raises: InvalidArgumentError: an option that the scheduler does not have, or two values of one.
    """
    checks.number("eta", eta, 0, 1)
    lists: dict[str, Any] = {"timesteps": timesteps, "sigmas": sigmas}
    given: dict[str, Any] = {
        **lists,
        "original_inference_steps": original_inference_steps,
        "strength": strength,
    }
    given = {key: value for key, value in given.items() if value is not None}
    twice = [key for key in given if key in choice.options]
    if eta and "eta" in choice.options:
        twice.append("eta")
    if twice:
        raise InvalidArgumentError(f"{twice[0]} is given twice: also in scheduler_options")
    if choice.built is not None:
        return _checked(choice.built, num_inference_steps, given | ({"eta": eta} if eta else {}))
    num_inference_steps = checks.integer("num_inference_steps", num_inference_steps, 1, MAX_STEPS)
    options = {**choice.options, **given}
    # a list says how many steps there are
    steps = None if any(options.get(key) is not None for key in lists) else num_inference_steps
    if "eta" in schedulers.option_names(choice.name):
        options.setdefault("eta", eta)  # 0 too: TCD's own default is another
    elif eta:
        raise InvalidArgumentError(f"scheduler '{choice.name}' has no eta; only ddim and tcd do")
    distilled = "original_inference_steps"
    if distilled in given and distilled not in schedulers.option_names(choice.name):
        raise InvalidArgumentError(
            f"scheduler '{choice.name}' has no {distilled}; only lcm and tcd do"
        )
    return schedulers.create(choice.name, choice.config, steps, schedule=choice.schedule, **options)


def _checked(built: Scheduler, steps: int | None, given: Mapping[str, Any]) -> Scheduler:
    """A caller's own scheduler, without memory of earlier runs."""
    if given:
        raise InvalidArgumentError(
            f"{next(iter(given))}: the scheduler is built already; give a name instead"
        )
    if steps is not None and steps != built.num_inference_steps:
        raise InvalidArgumentError(
            f"num_inference_steps: the scheduler was built for {built.num_inference_steps} steps, "
            f"got {shown(steps)}; leave it out"
        )
    return built.fresh()


def plan_timesteps(
    choice: SchedulerChoice,
    num_inference_steps: int | None,
    share: ImageShare,
    *,
    has_image: bool,
    default_steps: int = 50,
    eta: float = 0.0,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    original_inference_steps: int | None = None,
) -> TimestepPlan:
    """The scheduler, and which of its steps are run.

    Args:
      default_steps: in place of None, unless the scheduler is built already.
    Raises: InvalidArgumentError: see `make_scheduler`; a strength without an image, or one that
      leaves no step to run.
    """
    strength = _checked_strength(share, has_image=has_image)
    own = any(
        values is not None or choice.options.get(name) is not None
        for name, values in (("timesteps", timesteps), ("sigmas", sigmas))
    )
    shortens = share.shortens and strength is not None and not own and _takes_strength(choice)
    if num_inference_steps is None and choice.built is None:
        num_inference_steps = default_steps
    scheduler = make_scheduler(
        choice,
        num_inference_steps,
        eta=eta,
        timesteps=timesteps,
        sigmas=sigmas,
        original_inference_steps=original_inference_steps,
        strength=strength if shortens else None,
    )
    steps = counted = scheduler.num_inference_steps
    custom = any(scheduler.options.get(key) is not None for key in ("timesteps", "sigmas"))
    if custom or getattr(scheduler.config, "spaced_by", None) in LEVEL_SCHEDULES:
        # of some schedules a few more or less
        counted = math.ceil(len(scheduler.timesteps) / scheduler.order)
    if scheduler.inverts:
        end = _inverse_end(choice.name, scheduler, counted, share, strength)
        names = vars(names_of(choice, scheduler))
        return TimestepPlan(scheduler, steps, 0, strength, end, is_noised=False, **names)
    first_step = 0
    if share.denoising_start is not None:
        first_step = _step_of("denoising_start", share.denoising_start, scheduler)
    elif strength is not None and not shortens:
        first_step = _first_step(counted, scheduler, strength)
    if first_step and scheduler.leaves_noise:
        logger.warning(
            "scheduler '%s' leaves noise in an image that it starts from, as in diffusers; set its "
            "key restart_history, or choose another scheduler",
            choice.name,
        )
    return TimestepPlan(
        scheduler,
        steps,
        first_step,
        strength,
        _end_step(share, scheduler, first_step),
        is_noised=share.denoising_start is None,
        **vars(names_of(choice, scheduler)),
    )


def _inverse_end(
    name: str, scheduler: Scheduler, steps: int, share: ImageShare, strength: float | None
) -> int | None:
    """Where the steps from clean latents to noise end: after as many as the strength says."""
    if share.denoising_start is not None or share.denoising_end is not None:
        raise InvalidArgumentError(
            f"scheduler '{name}' goes from an image to noise; it takes no denoising_start or "
            "denoising_end, but strength"
        )
    if strength is None:
        return None
    return len(scheduler.timesteps) - _first_step(steps, scheduler, strength)


def _takes_strength(choice: SchedulerChoice) -> bool:
    return choice.built is None and "strength" in schedulers.option_names(choice.name)


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
