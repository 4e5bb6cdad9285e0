"""Samplers: each class carries the name and the configuration keys of its diffusers twin."""

from runtime.schedulers.common import Scheduler, StepResult
from runtime.schedulers.consistency import LCMScheduler, TCDScheduler
from runtime.schedulers.create import (
    ALIASES,
    NAMES,
    canonical_name,
    class_name,
    create,
    option_names,
)
from runtime.schedulers.ddim import DDIMScheduler
from runtime.schedulers.ddpm import DDPMScheduler
from runtime.schedulers.deis import DEISMultistepScheduler
from runtime.schedulers.dpm2 import KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from runtime.schedulers.dpmsolver import DPMSolverMultistepScheduler
from runtime.schedulers.dpmsolver_sde import DPMSolverSDEScheduler
from runtime.schedulers.dpmsolver_singlestep import DPMSolverSinglestepScheduler
from runtime.schedulers.euler import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from runtime.schedulers.heun import HeunDiscreteScheduler
from runtime.schedulers.lms import LMSDiscreteScheduler
from runtime.schedulers.pndm import PNDMScheduler
from runtime.schedulers.unipc import UniPCMultistepScheduler

__all__ = [
    "ALIASES",
    "NAMES",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "Scheduler",
    "StepResult",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "canonical_name",
    "class_name",
    "create",
    "option_names",
]
