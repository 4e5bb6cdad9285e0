"""The Scheduler protocol and what its families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np

from runtime import schedules

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class StepResult:
    """What a step gives: the next latents, and the clean latents that it sees behind them."""

    prev_sample: np.ndarray
    pred_original_sample: np.ndarray


class Scheduler(Protocol):
    """One generation's sampler, ready after construction and addressed by step index."""

    @property
    def timesteps(self) -> np.ndarray:
        """Training timestep of each step, highest first, (steps,) float64."""
        ...

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation that pure noise must have before the first step."""
        ...

    @property
    def takes_noise(self) -> bool:
        """Whether `step` asks for fresh noise."""
        ...

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        """Bring latents to the scale on which the UNet was trained; same shape and dtype."""
        ...

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by step i, 0 <= i < len(timesteps), called in rising order."""
        ...

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """Clean latents as they would stand before step i."""
        ...


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Keys that every scheduler understands, under diffusers' names and with its defaults."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"unknown prediction_type '{self.prediction_type}'; "
                f"choose one of {', '.join(PREDICTION_TYPES)}"
            )
        for key, least in (("num_train_timesteps", 1), ("steps_offset", 0)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{key} must be a whole number, got {value!r}")
        for key in ("beta_start", "beta_end"):
            value = getattr(self, key)
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise ValueError(f"{key} must be a number between 0 and 1, got {value!r}")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas must hold {self.num_train_timesteps} numbers between 0 and 1, "
                f"got {len(self.trained_betas)}"
            )

    @classmethod
    def known_keys(cls) -> frozenset[str]:
        return frozenset(field.name for field in fields(cls))

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> Self:
        """Take the known keys of a scheduler_config.json; None means the default."""
        known = cls.known_keys()
        values = {k: v for k, v in config.items() if k in known and v is not None}
        try:
            if "trained_betas" in values:
                values["trained_betas"] = tuple(float(beta) for beta in values["trained_betas"])
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"scheduler configuration: {error}") from error

    def betas(self) -> np.ndarray:
        return schedules.betas(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.num_train_timesteps,
            self.trained_betas,
        )


def check_step(name: str, noise_pred: np.ndarray, i: int, sample: np.ndarray, steps: int) -> None:
    """Raise ValueError unless the two arrays match and the index is one of the schedule's."""
    if noise_pred.shape != sample.shape:
        raise ValueError(
            f"{name}: noise_pred {noise_pred.shape} and sample {sample.shape} must have one shape"
        )
    if not 0 <= i < steps:
        raise ValueError(f"{name}: step index {i} is not within 0..{steps - 1}")
