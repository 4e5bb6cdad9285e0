"""Schedulers by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from runtime.schedulers.common import ScheduleConfig, Scheduler
from runtime.schedulers.ddim import DDIMConfig, DDIMScheduler
from runtime.schedulers.lms import LMSConfig, LMSDiscreteScheduler

logger = logging.getLogger(__name__)

_SCHEDULERS: dict[str, tuple[str, Callable[..., Scheduler], type[ScheduleConfig]]] = {
    "ddim": ("DDIMScheduler", DDIMScheduler, DDIMConfig),
    "lms": ("LMSDiscreteScheduler", LMSDiscreteScheduler, LMSConfig),
}
NAMES: tuple[str, ...] = tuple(_SCHEDULERS)

# Keys of Stable Diffusion's published configurations that belong to other samplers.
_ELSEWHERE = frozenset({"skip_prk_steps", "set_alpha_to_one", "clip_sample", "clip_sample_range"})


def canonical_name(name: str) -> str | None:
    """Short name of a scheduler given by its short or its class name; None if there is none."""
    for short, (twin, _, _) in _SCHEDULERS.items():
        if name.lower() in (short, twin.lower()):
            return short
    return None


def create(
    name: str, config: Mapping[str, Any], num_inference_steps: int, **options: Any
) -> Scheduler:
    """Build a scheduler.

    Args:
      name: one of NAMES, or a class name of diffusers.
      config: the content of scheduler_config.json, of this or another scheduler; keys that this
        one does not know are logged as a warning, unless they are some other sampler's.
      options: of the one scheduler, such as `eta` for DDIM.
    Raises: ValueError: unknown name, or a value out of range.
    """
    short = canonical_name(name)
    if short is None:
        raise ValueError(f"unknown scheduler '{name}'; choose one of {', '.join(NAMES)}")
    twin, build, known = _SCHEDULERS[short]
    strange = [
        key
        for key in config
        if not key.startswith("_") and key not in known.known_keys() and key not in _ELSEWHERE
    ]
    if strange:
        logger.warning("%s ignores %s", twin, ", ".join(strange))
    return build(config, num_inference_steps, **options)


def class_name(name: str) -> str:
    """diffusers' class name of a scheduler in NAMES."""
    return _SCHEDULERS[name][0]
