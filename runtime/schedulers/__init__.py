"""Samplers: each class carries the name and the configuration keys of its diffusers twin.

The classes, such as `DDIMScheduler`, are imported when they are first asked for.
"""

from typing import Any

from sdexport.runtime.schedulers.common import Scheduler, StepResult
from sdexport.runtime.schedulers.create import (
    ALIASES,
    NAMES,
    build_class,
    canonical_name,
    class_name,
    create,
    option_names,
)

__all__ = [
    "ALIASES",
    "NAMES",
    "Scheduler",
    "StepResult",
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
