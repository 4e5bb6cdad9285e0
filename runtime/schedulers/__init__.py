"""Samplers: each class carries the name and the configuration keys of its diffusers twin."""

from runtime.schedulers.common import Scheduler, StepResult
from runtime.schedulers.create import NAMES, canonical_name, class_name, create
from runtime.schedulers.ddim import DDIMScheduler
from runtime.schedulers.lms import LMSDiscreteScheduler

__all__ = [
    "NAMES",
    "DDIMScheduler",
    "LMSDiscreteScheduler",
    "Scheduler",
    "StepResult",
    "canonical_name",
    "class_name",
    "create",
]
