"""Which scheduler runs, with how many steps, and at which step an image starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks, schedulers
from sdexport.runtime.schedulers import Scheduler

MAX_STEPS = 100_000
DEFAULT_SCHEDULER = "ddim"
"""Used where a configuration names a scheduler that is not known here."""


@dataclass(frozen=True)
class TimestepPlan:
    """The steps of a pipeline call.

    name: of the scheduler. first_step: index of the first of its timesteps that is run. strength:
    0..1, where that comes from; None without an input image.
    """

    name: str
    scheduler: Scheduler
    num_inference_steps: int
    first_step: int
    strength: float | None


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
) -> Scheduler:
    """A scheduler on a configuration; see sdexport.runtime.schedulers.create.

    Raises: InvalidArgumentError: an unknown name, or an option that the scheduler does not have.
    """
    if not isinstance(name, str):
        raise InvalidArgumentError(f"scheduler must be a name, got {shown(name)}")
    checks.integer("num_inference_steps", num_inference_steps, 1, MAX_STEPS)
    checks.number("eta", eta, 0, 1)
    options: dict[str, Any] = {"timesteps": timesteps, "sigmas": sigmas}
    options = {key: value for key, value in options.items() if value is not None}
    steps = None if options else num_inference_steps  # a list says how many there are
    short = schedulers.canonical_name(name)
    if short and "eta" in schedulers.option_names(short):
        options["eta"] = eta  # 0 too: TCD's own default is another
    elif eta and short:
        raise InvalidArgumentError(f"scheduler '{name}' has no eta; only ddim and tcd do")
    return schedulers.create(name, config, steps, **options)


def plan_timesteps(
    name: str,
    config: Mapping[str, Any],
    num_inference_steps: int,
    strength: float | None,
    *,
    has_image: bool,
    eta: float = 0.0,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> TimestepPlan:
    """The scheduler, and the step at which the strength lets an image start.

    Raises: InvalidArgumentError: see `make_scheduler`; a strength without an image, or one that
      leaves no step to run.
    """
    scheduler = make_scheduler(
        name, config, num_inference_steps, eta=eta, timesteps=timesteps, sigmas=sigmas
    )
    steps = num_inference_steps
    if timesteps is not None or sigmas is not None:
        steps = math.ceil(len(scheduler.timesteps) / scheduler.order)
    first_step, strength = _first_step(steps, scheduler, strength, has_image=has_image)
    canonical = schedulers.canonical_name(name) or name
    return TimestepPlan(canonical, scheduler, steps, first_step, strength)


def _first_step(
    steps: int, scheduler: Scheduler, strength: float | None, *, has_image: bool
) -> tuple[int, float | None]:
    """Index of the first timestep that is run, and the checked strength."""
    if not has_image:
        if strength is not None:
            raise InvalidArgumentError("strength needs an image to start from")
        return 0, None
    strength = checks.number("strength", strength, 0, 1)
    kept = min(int(steps * strength), steps)
    if kept < 1:
        raise InvalidArgumentError(
            f"strength {strength:g} leaves none of {steps} steps; give at least {1 / steps:.3g}"
        )
    return (steps - kept) * scheduler.order, strength
