"""Schedulers, with the class names and configuration keys of diffusers.

    >>> from sdexport.runtime import schedulers
    >>> scheduler = schedulers.create("ddim", {"beta_schedule": "scaled_linear"}, 20)
    >>> scheduler.timesteps[:3]
    array([950., 900., 850.])

The classes, such as `DDIMScheduler`, are attributes of this module, imported on first use.
"""

from typing import Any

from sdexport.runtime.schedulers.create import (
    ALIASES,
    NAMES,
    allowed_schedules,
    build_class,
    canonical_name,
    class_name,
    create,
    option_names,
)
from sdexport.runtime.schedulers.scheduler_base import Scheduler, StepResult

__all__ = [
    "ALIASES",
    "NAMES",
    "Scheduler",
    "StepResult",
    "allowed_schedules",
    "canonical_name",
    "class_name",
    "create",
    "option_names",
]


def __getattr__(name: str) -> Any:
    short = canonical_name(name)
    if short is None or class_name(short) != name:
        raise AttributeError(f"module 'sdexport.runtime.schedulers' has no attribute '{name}'")
    return build_class(short)
