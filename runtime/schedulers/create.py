"""Schedulers by name. A new scheduler is one module and one line of the table below."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import plain, shown
from sdexport.runtime.schedulers import schedule_names
from sdexport.runtime.schedulers.program_names import CLASSES_OF_OTHER_MODELS, PRESETS
from sdexport.runtime.schedulers.sampler_names import (
    SamplerName,
    display_names,
    find_sampler,
    preset,
    why_not_supported,
)
from sdexport.runtime.schedulers.schedule_names import (
    AUTOMATIC,
    AUTOMATIC_SCHEDULES,
    TIMESTEPS,
    find_schedule,
    why_no_schedule,
)
from sdexport.runtime.schedulers.scheduler_base import Scheduler
from sdexport.runtime.schedulers.scheduler_config import WITHOUT_EFFECT, SchedulerConfig

logger = logging.getLogger(__name__)

# Short name -> module and class; the module is imported when the class is first needed.
_SCHEDULERS: dict[str, tuple[str, str]] = {
    "ddim": ("ddim", "DDIMScheduler"),
    "ddpm": ("ddpm", "DDPMScheduler"),
    "pndm": ("pndm", "PNDMScheduler"),
    "lms": ("lms", "LMSDiscreteScheduler"),
    "euler": ("euler", "EulerDiscreteScheduler"),
    "euler_a": ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
    "heun": ("heun", "HeunDiscreteScheduler"),
    "dpm2": ("dpm2", "KDPM2DiscreteScheduler"),
    "dpm2_a": ("dpm2", "KDPM2AncestralDiscreteScheduler"),
    "dpmsolver++": ("dpmsolver", "DPMSolverMultistepScheduler"),
    "dpmsolver++_single": ("dpmsolver_singlestep", "DPMSolverSinglestepScheduler"),
    "dpmsolver_sde": ("dpmsolver_sde", "DPMSolverSDEScheduler"),
    "unipc": ("unipc", "UniPCMultistepScheduler"),
    "deis": ("deis", "DEISMultistepScheduler"),
    "lcm": ("lcm", "LCMScheduler"),
    "tcd": ("tcd", "TCDScheduler"),
    "dpm++_2s_a": ("dpmpp_2s_ancestral", "DPMSolver2SAncestralScheduler"),
    "dpm++_3m_sde": ("dpmpp_3m_sde", "DPMSolver3MSDEScheduler"),
    "sasolver": ("sasolver", "SASolverScheduler"),
    "ddim_inverse": ("ddim_inverse", "DDIMInverseScheduler"),
    "dpmsolver++_inverse": ("dpmsolver_inverse", "DPMSolverMultistepInverseScheduler"),
    "euler_inverse": ("euler_inverse", "EulerInverseScheduler"),
    "ipndm": ("ipndm", "IPNDMScheduler"),
    "edm_euler": ("edm_euler", "EDMEulerScheduler"),
    "edm_dpmsolver++": ("edm_dpmsolver", "EDMDPMSolverMultistepScheduler"),
}
NAMES: tuple[str, ...] = tuple(_SCHEDULERS)

EDM_NAMES = ("edm_euler", "edm_dpmsolver++")
"""Schedulers for models with EDM preconditioning, which take no others."""

CONTINUOUS = "ipndm"
"""The scheduler for models whose timesteps are 0 to 1."""

_OWN_TIMESTEPS = ("timestep_spacing", "steps_offset")
UNUSED_KEYS: Mapping[str, tuple[str, ...]] = {
    "lcm": _OWN_TIMESTEPS,
    "tcd": _OWN_TIMESTEPS,
    CONTINUOUS: (
        *_OWN_TIMESTEPS,
        *("beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    ),
    **dict.fromkeys(
        EDM_NAMES, (*_OWN_TIMESTEPS, "beta_start", "beta_end", "beta_schedule", "trained_betas")
    ),
}
"""Keys of a scheduler's configuration that change nothing, as in diffusers; a scheduler's module
may name more in IGNORED."""

ALIASES = PRESETS
"""Names that set keys of a configuration -> scheduler and those keys."""


def canonical_name(name: str) -> str | None:
    """The short name or alias, with a schedule if the name has one; None if unknown.

    Args:
      name: of any program; see sampler_names.
    """
    found = find_sampler(name)
    return None if found is None else str(found)


def create(
    name: str,
    config: Mapping[str, Any],
    num_inference_steps: int | None,
    *,
    schedule: str | None = None,
    **options: Any,
) -> Scheduler:
    """Build a scheduler.

    Args:
      name: of any program, such as "euler_a", "DPM++ 2M Karras" or "EulerDiscreteScheduler".
      config: the content of scheduler_config.json, of this or another scheduler; a warning names
        the keys that no scheduler has.
      num_inference_steps: 1 <= steps <= num_train_timesteps; may be None if `timesteps` or
        `sigmas` are given.
      schedule: how the noise levels are spaced, such as "karras" or "SGM Uniform"; see
        allowed_schedules. By default as the name or the configuration says.
      options: of that scheduler, such as `eta` for DDIM, and keys that replace those of the
        configuration; see scheduler_options.
    Raises: InvalidArgumentError: unknown name or option, or a value out of range.
    """
    found = sampler_of(name)
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise InvalidArgumentError(
            f"scheduler configuration: expected an object with keys, got {shown(config)}"
        )
    base, keys = preset(found.name)
    chosen = chosen_schedule(found, schedule)
    levels = schedule_keys(base, chosen)
    keys = {**keys, **levels}
    _check_options(base, options)
    _check_schedule(chosen, levels, options)
    _check_parametrisation(base, config)
    ignored = [key for key in config.keys() - known_keys() if not key.startswith("_")]
    if ignored:
        names = ", ".join(plain(key) for key in sorted(ignored))
        logger.warning("%s ignores %s", class_name(base), names)
    if num_inference_steps is None:
        num_inference_steps = _count(options)
    arguments = {key: options.pop(key) for key in option_names(base) if key in options}
    with np.errstate(all="ignore"):  # what is not finite is rejected
        return build_class(base)({**config, **keys, **options}, num_inference_steps, **arguments)


def sampler_of(name: str) -> SamplerName:
    """The sampler that a program calls by a name.

    Raises: InvalidArgumentError: unknown, or missing here; names the nearest.
    """
    found = find_sampler(name)
    if found is None:
        raise InvalidArgumentError(_unknown(name))
    return found


def chosen_schedule(name: SamplerName, schedule: str | None) -> str | None:
    """Our schedule, from a sampler's name or the one given; None for that of the configuration.

    Raises: InvalidArgumentError: unknown, or the sampler's name has another one.
    """
    if schedule is None:
        return name.schedule
    found = find_schedule(schedule) if isinstance(schedule, str) else None
    if found is None:
        raise InvalidArgumentError(_unknown_schedule(schedule))
    if name.schedule not in (None, found):
        raise InvalidArgumentError(
            f"scheduler '{name}' and schedule '{found}' name two schedules; give one of them"
        )
    return AUTOMATIC_SCHEDULES.get(name.name) if found == AUTOMATIC else found


def _check_schedule(
    schedule: str | None, keys: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Raise InvalidArgumentError if options contradict the schedule that was chosen.

    Args:
      keys: what selects the schedule.
    """
    if schedule is None:
        return
    keys = {key: value for key, value in keys.items() if value not in (None, False)}
    flags = {f"use_{name}_sigmas": name == schedule for name in ("karras", "exponential", "beta")}
    for key, value in {**flags, **keys}.items():
        if options.get(key) not in (None, value):
            raise InvalidArgumentError(
                f"schedule '{schedule}' sets {key} to {value}, and the scheduler's options to "
                f"{shown(options[key])}; give one of them"
            )


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError unless they are options of a scheduler in NAMES."""
    valid = (*key_names(name), *option_names(name))
    for option in options:
        if option not in valid:
            raise InvalidArgumentError(
                f"{name} has no option '{option:.60}'{nearest(option, valid)}; "
                f"choose one of {', '.join(dict.fromkeys(valid))}"
            )


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar one, if there is one."""
    import difflib  # only for this message

    similar = difflib.get_close_matches(name.lower(), names, 1)
    return f"; did you mean {similar[0]}?" if similar else ""


def _check_parametrisation(name: str, config: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError if the configuration belongs to a model of another kind."""
    class_ = str(config.get("_class_name", ""))
    why = CLASSES_OF_OTHER_MODELS.get(class_)
    if why is not None:
        raise InvalidArgumentError(
            f"the scheduler's configuration is that of {class_}: {why}; give the "
            "scheduler_config.json that the UNet was trained with as scheduler"
        )
    origin = canonical_name(str(config.get("_class_name", "")))
    if name == CONTINUOUS:
        if origin not in (None, name):
            raise InvalidArgumentError(
                f"{name} needs a model of continuous time, such as Dance Diffusion, in diffusers "
                "too; for Stable Diffusion choose lms, pndm or another"
            )
        if origin == name:
            logger.warning(
                "%s is for models of continuous time; Stable Diffusion gives noise",
                class_name(name),
            )
    if name in EDM_NAMES:
        if origin is not None and _base(origin) not in EDM_NAMES:
            raise InvalidArgumentError(
                f"{name} needs a model with EDM preconditioning; this one was trained for "
                f"{class_name(origin)} and the like"
            )
    elif origin in EDM_NAMES or "sigma_data" in config:
        raise InvalidArgumentError(
            f"{name}: this model has EDM preconditioning; choose {' or '.join(EDM_NAMES)}"
        )


def schedule_keys(name: str, schedule: str | None) -> Mapping[str, Any]:
    """The keys that select a schedule of a scheduler in NAMES."""
    if schedule is None:
        return {}
    keys = _keys_of_schedules(name)
    if schedule not in keys:
        raise InvalidArgumentError(
            f"{name} has no schedule '{schedule}'; choose one of {', '.join(keys) or 'none'}"
        )
    return keys[schedule]


def allowed_schedules(name: str) -> tuple[str, ...]:
    """The schedules of a scheduler in NAMES."""
    return tuple(_keys_of_schedules(name))


def _keys_of_schedules(name: str) -> dict[str, Mapping[str, Any]]:
    """Schedule -> the keys that select it, of a scheduler in NAMES."""
    if name in EDM_NAMES:
        levels = config_class(name).allowed()["schedule"]
        own = {level: {"schedule": level} for level in levels}
        return own | dict(schedule_names.EDM_KEYS)
    fields = config_class(name).__dataclass_fields__.keys() - _unused_keys(name)
    allowed = config_class(name).allowed()
    return {
        schedule: keys
        for schedule, keys in schedule_names.KEYS.items()
        if all(
            key in fields and value in allowed.get(key, (value,))
            for key, value in keys.items()
            if value not in (None, False, TIMESTEPS)
        )
    }


_SHOWN = 16
"""Names in the message about an unknown one."""


def _unknown(name: str) -> str:
    """What is wrong with the name of a scheduler, and the most similar one."""
    suggestions = display_names()
    hint, why = nearest(name, suggestions), why_not_supported(name)
    if why is not None:
        return f"scheduler '{name:.60}' of {why[0]} is not supported: {why[1]}{hint}"
    return (
        f"unknown scheduler '{name:.60}'{hint}; choose one of {', '.join(NAMES[:_SHOWN])} "
        f"and {len(suggestions) - _SHOWN} more, which `sdexport schedulers` lists"
    )


def _unknown_schedule(name: object) -> str:
    """What is wrong with the name of a schedule, and the most similar one."""
    if not isinstance(name, str):
        return f"schedule must be a name, got {shown(name)}"
    why = why_no_schedule(name)
    if why is not None:
        return f"schedule '{name:.60}' of {why[0]} is not supported: {why[1]}"
    names = schedule_names.KEYS
    return f"unknown schedule '{name:.60}'{nearest(name, names)}; choose one of {', '.join(names)}"


def _count(options: Mapping[str, Any]) -> int:
    """Steps of the caller's own schedule: there is one more of the sigmas."""
    for name, extra in (("timesteps", 0), ("sigmas", 1)):
        if hasattr(options.get(name), "__len__"):
            return len(options[name]) - extra
    raise InvalidArgumentError(
        "num_inference_steps: expected a whole number, or timesteps or sigmas"
    )


@functools.cache
def known_keys() -> frozenset[str]:
    """Keys of all schedulers' configurations, and those that are known to have no effect."""
    for name in NAMES:
        build_class(name)
    return SchedulerConfig.known_keys() | WITHOUT_EFFECT


@functools.cache
def option_names(name: str) -> tuple[str, ...]:
    """Keyword arguments of the class of a scheduler in NAMES or ALIASES."""
    parameters = inspect.signature(build_class(name)).parameters
    return tuple(key for key, value in parameters.items() if value.kind is value.KEYWORD_ONLY)


@functools.cache
def key_names(name: str) -> tuple[str, ...]:
    """Keys of the configuration that change something, of a scheduler in NAMES or ALIASES.

    All but `schedule`, which is an argument of `create`.
    """
    unused = {*_unused_keys(name), "schedule"}
    keys = (field.name for field in fields(config_class(name)))
    return tuple(key for key in keys if key not in unused)


def _unused_keys(name: str) -> set[str]:
    module = sys.modules[build_class(name).__module__]
    return {*UNUSED_KEYS.get(_base(name), ()), *getattr(module, "IGNORED", ())}


def class_name(name: str) -> str:
    """diffusers' class name of a scheduler in NAMES or ALIASES."""
    return _SCHEDULERS[_base(name)][1]


@functools.cache
def config_class(name: str) -> type[SchedulerConfig]:
    """The class of a scheduler's configuration, for a scheduler in NAMES or ALIASES."""
    found: type[SchedulerConfig] = typing.get_type_hints(build_class(name))["config"]
    return found


def build_class(name: str) -> Callable[..., Scheduler]:
    """The class of a scheduler in NAMES or ALIASES."""
    module, class_ = _SCHEDULERS[_base(name)]
    found: Callable[..., Scheduler] = getattr(
        importlib.import_module(f"sdexport.runtime.schedulers.{module}"), class_
    )
    return found


def _base(name: str) -> str:
    found = find_sampler(name)
    return name if found is None else preset(found.name)[0]
