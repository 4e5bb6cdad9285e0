"""Schedulers by name. A new scheduler is one module and one line of the table below."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
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
    "edm_euler": ("edm_euler", "EDMEulerScheduler"),
    "edm_dpmsolver++": ("edm_dpmsolver", "EDMDPMSolverMultistepScheduler"),
}
NAMES: tuple[str, ...] = tuple(_SCHEDULERS)

EDM_NAMES = ("edm_euler", "edm_dpmsolver++")
"""Schedulers for models with EDM preconditioning, which take no others."""

# Name in other programs -> scheduler and the keys that the name sets.
_KARRAS = {"use_karras_sigmas": True}
_2M_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
ALIASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "plms": ("pndm", {"skip_prk_steps": True}),
    "lms_karras": ("lms", _KARRAS),
    "euler_karras": ("euler", _KARRAS),
    "dpm2_karras": ("dpm2", _KARRAS),
    "dpm2_a_karras": ("dpm2_a", _KARRAS),
    "dpm++_2m": ("dpmsolver++", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++_2m_karras": (
        "dpmsolver++",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, **_KARRAS},
    ),
    "dpm++_2m_sde": ("dpmsolver++", _2M_SDE),
    "dpm++_2m_sde_karras": ("dpmsolver++", {**_2M_SDE, **_KARRAS}),
    "dpm++_sde": ("dpmsolver_sde", {}),
    "dpm++_sde_karras": ("dpmsolver_sde", _KARRAS),
}


def canonical_name(name: str) -> str | None:
    """The short name or alias, from that or from a class name, in any case; None if unknown."""
    lowered = name.lower()
    if lowered in _SCHEDULERS or lowered in ALIASES:
        return lowered
    return next((short for short in NAMES if class_name(short).lower() == lowered), None)


def create(
    name: str, config: Mapping[str, Any], num_inference_steps: int | None, **options: Any
) -> Scheduler:
    """Build a scheduler.

    Args:
      name: one of NAMES or ALIASES, or a class name of diffusers.
      config: the content of scheduler_config.json, of this or another scheduler; a warning names
        the keys that no scheduler has.
      num_inference_steps: 1 <= steps <= num_train_timesteps; may be None if `timesteps` or
        `sigmas` are given.
      options: of that scheduler, such as `eta` for DDIM; see option_names.
    Raises: InvalidArgumentError: unknown name or option, or a value out of range.
    """
    short = canonical_name(name)
    if short is None:
        raise InvalidArgumentError(
            f"unknown scheduler '{name:.60}'; choose one of {', '.join(NAMES)}{_suggestion(name)}"
        )
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise InvalidArgumentError(
            f"scheduler configuration: expected an object with keys, got {shown(config)}"
        )
    base, preset = ALIASES.get(short, (short, {}))
    unknown = [option for option in options if option not in option_names(base)]
    if unknown:
        valid = ", ".join(option_names(base)) or "none"
        raise InvalidArgumentError(
            f"{short} takes no option {', '.join(unknown)}; valid options: {valid}"
        )
    _check_parametrisation(base, config)
    ignored = [key for key in config.keys() - known_keys() if not key.startswith("_")]
    if ignored:
        logger.warning("%s ignores %s", class_name(base), ", ".join(sorted(ignored)))
    if num_inference_steps is None:
        num_inference_steps = _count(options)
    return build_class(base)({**config, **preset}, num_inference_steps, **options)


def _check_parametrisation(name: str, config: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError if model and sampler differ in whether they have EDM's scaling."""
    origin = canonical_name(str(config.get("_class_name", "")))
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


def _suggestion(name: str) -> str:
    """The end of the message for an unknown name: the most similar name, or an example alias."""
    import difflib  # only for this message

    similar = difflib.get_close_matches(name.lower(), (*NAMES, *ALIASES), 1)
    if similar:
        return f"; did you mean {similar[0]}?"
    return f"; there are also aliases such as {tuple(ALIASES)[-1]}"


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


def option_names(name: str) -> tuple[str, ...]:
    """Keyword options of a scheduler in NAMES or ALIASES."""
    parameters = inspect.signature(build_class(name)).parameters
    return tuple(key for key, value in parameters.items() if value.kind is value.KEYWORD_ONLY)


def class_name(name: str) -> str:
    """diffusers' class name of a scheduler in NAMES or ALIASES."""
    return _SCHEDULERS[_base(name)][1]


def build_class(name: str) -> Callable[..., Scheduler]:
    """The class of a scheduler in NAMES or ALIASES."""
    module, class_ = _SCHEDULERS[_base(name)]
    found: Callable[..., Scheduler] = getattr(
        importlib.import_module(f"sdexport.runtime.schedulers.{module}"), class_
    )
    return found


def _base(name: str) -> str:
    return ALIASES.get(name, (name,))[0]
