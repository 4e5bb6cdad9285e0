"""What chooses a scheduler again on the same package: its names and options, for metadata."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.scheduler_argument import SchedulerChoice
from sdexport.runtime.schedulers import Scheduler
from sdexport.runtime.schedulers.create import (
    config_class,
    key_names,
    option_names,
    schedule_keys,
)
from sdexport.runtime.schedulers.sampler_names import (
    find_sampler,
    from_automatic1111,
    preset,
    to_automatic1111,
)

OWN_ARGUMENTS = ("eta", "timesteps", "sigmas", "original_inference_steps", "strength")
"""Options of schedulers that are arguments of a pipeline call, which are recorded as such."""


_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Keys that the schedule replaces."""


@dataclass(frozen=True)
class SchedulerNames:
    """Arguments of a pipeline call that choose the same scheduler on the same package.

    name: ours, which AUTOMATIC1111 has a name for if there is one. schedule: also where it comes
    from the package's configuration; None for samplers without schedules. scheduler_options: None
    for none.
    """

    name: str
    schedule: str | None
    scheduler_options: Mapping[str, Any] | None


def names_of(choice: SchedulerChoice, scheduler: Scheduler) -> SchedulerNames:
    """The names of a scheduler that was chosen, and the options that they do not imply."""
    if find_sampler(choice.name) is None:  # a class of the caller's own
        return SchedulerNames(choice.name, None, None)
    keys = vars(scheduler.config)
    found = from_automatic1111(*to_automatic1111(choice.name, keys, choice.schedule))
    name, schedule = found or (choice.name, choice.schedule)
    if any(scheduler.options.get(key) is not None for key in ("timesteps", "sigmas")):
        schedule = None  # they stand for one
    arguments = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in scheduler.options.items()
        if key not in OWN_ARGUMENTS or key in choice.options or choice.built is not None
    }
    if choice.built is not None and "eta" in option_names(choice.name):
        # of a call it is 0, and of TCD's class it is not
        arguments.setdefault("eta", inspect.signature(type(scheduler)).parameters["eta"].default)
    options = _differing(keys, name, schedule, choice) | arguments
    return SchedulerNames(name, schedule, options or None)


def _differing(
    keys: Mapping[str, Any], name: str, schedule: str | None, choice: SchedulerChoice
) -> dict[str, Any]:
    """The keys of a configuration that the names do not give on the package's configuration."""
    scheduler, sets = preset(name)
    implied = {**choice.package_config, **sets, **schedule_keys(scheduler, schedule)}
    try:
        usual = vars(config_class(scheduler).from_mapping(implied))
    except InvalidArgumentError:  # the package's configuration alone is not valid
        usual = {}
    names = set(key_names(scheduler)).difference(_FLAGS if schedule else ())
    return {
        key: value
        for key, value in keys.items()
        if key in names and (key not in usual or usual[key] != value)
    }
