"""Configuration and timesteps of consistency-distilled models: LCM and TCD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.schedulers.schedule_arguments import (
    CustomSchedule,
    custom_schedule,
    is_whole,
    number_option,
)
from sdexport.runtime.schedulers.scheduler_config import MAX_TRAIN_TIMESTEPS, ClippingConfig


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(ClippingConfig):
    """Keys of diffusers' LCMScheduler and TCDScheduler."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    clip_sample: bool = False
    set_alpha_to_one: bool = True
    timestep_scaling: float = 10.0

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "original_inference_steps": (1, MAX_TRAIN_TIMESTEPS),
        "timestep_scaling": (0, 1e9),
    }


def consistency_timesteps(
    config: ConsistencyConfig,
    steps: int,
    timesteps: CustomSchedule,
    original_steps: int | None,
    strength: float,
    *,
    every: bool = False,
) -> np.ndarray:
    """Evenly chosen timesteps of the distillation, highest first, (steps,) float64.

    Args:
      steps: 1 <= steps <= original_steps * strength.
      timesteps: the caller's own whole timesteps, falling, in place of chosen ones.
      original_steps: steps of the distillation; None for those of the configuration.
      strength: share of the distilled timesteps to use, from the cleanest; for image to image.
      every: choose from all training timesteps instead.
    Raises: InvalidArgumentError: a value out of range.
    """
    config.check_steps(steps)
    train_steps = config.num_train_timesteps
    count = config.original_inference_steps if original_steps is None else original_steps
    if not is_whole(count) or not 1 <= count <= train_steps:
        raise InvalidArgumentError(
            f"original_inference_steps must be 1 to {train_steps}, got {shown(count)}"
        )
    share = number_option("strength", strength, 0, 1)
    if timesteps is not None:
        if share != 1:
            raise InvalidArgumentError(
                "timesteps and strength: give one or the other; begin the list where strength would"
            )
        return custom_schedule("timesteps", timesteps, train_steps, whole=True, length=steps)
    if every:
        distilled = np.arange(int(train_steps * share))
    else:
        distilled = np.arange(1, int(count * share) + 1) * (train_steps // count) - 1
    highest = min(len(distilled), count)
    if steps > highest:
        raise InvalidArgumentError(
            f"num_inference_steps must be 1 to {highest} "
            f"(original_inference_steps {count} at strength {share:g}), got {steps}"
        )
    chosen = np.floor(np.linspace(0, len(distilled), num=steps, endpoint=False)).astype(np.int64)
    return np.asarray(distilled[::-1][chosen].astype(np.float64))
