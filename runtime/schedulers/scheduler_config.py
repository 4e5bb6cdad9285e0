"""Configurations of schedulers: the keys of diffusers, each checked."""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.schedule_arguments import is_number, is_whole, number_list

Keys = Mapping[str, Any]
"""The content of a scheduler_config.json."""
Bound = float
"""A number that may be -Infinity."""
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MAX_TRAIN_TIMESTEPS = 100_000
ABOVE_ZERO = 1e-12

# Keys of diffusers' schedulers that change nothing for the models supported here.
WITHOUT_EFFECT = frozenset(
    {
        "flow_shift",
        "noise_sampler_seed",
        "shift_terminal",
        "solver_p",
        "tau_func",
        "time_shift_type",
        "use_dynamic_shifting",
        "use_flow_sigmas",
    }
)

# For the annotation of each field: the check, and how a message describes what is expected.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (is_whole, "a whole number"),
    "float": (is_number, "a number"),
    "float | None": (is_number, "a number"),
    "Bound": (lambda v: is_number(v) or v == -math.inf, "a number or -Infinity"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "str": (lambda v: isinstance(v, str), "a string"),
    "str | None": (lambda v: isinstance(v, str), "a string"),
    "tuple[float, ...] | None": (lambda v: isinstance(v, tuple), "a list of numbers"),
    "tuple[int, ...]": (lambda v: isinstance(v, tuple), "a list of whole numbers"),
}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Keys that every scheduler has, under diffusers' names and with its defaults.

    A subclass adds the keys of its scheduler as fields, and their limits to `ranges` and `choices`.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    # Keys of some schedulers only: the others behave as these values say.
    clip_sample = False
    clip_sample_range = 1.0
    thresholding = False
    dynamic_thresholding_ratio = 0.995
    sample_max_value = 1.0
    rescale_betas_zero_snr = False

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "num_train_timesteps": (1, MAX_TRAIN_TIMESTEPS),
        "steps_offset": (0, MAX_TRAIN_TIMESTEPS),
        "beta_start": (ABOVE_ZERO, 1 - ABOVE_ZERO),
        "beta_end": (ABOVE_ZERO, 1 - ABOVE_ZERO),
        "clip_sample_range": (ABOVE_ZERO, 1e9),
        "dynamic_thresholding_ratio": (0, 1),
        "sample_max_value": (ABOVE_ZERO, 1e9),
    }
    """Lowest and highest value of a key; those of a subclass are added to those of its bases."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction_type": PREDICTION_TYPES,
        "beta_schedule": noise_schedules.BETA_SCHEDULES,
        "timestep_spacing": noise_schedules.SPACINGS,
    }
    """Values of a key that is a string; those of a subclass are added to those of its bases."""

    def __post_init__(self) -> None:
        ranges, choices = self._inherited("ranges"), self._inherited("choices")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or not str(field.type).endswith("None"):
                _check_value(field.name, str(field.type), value, ranges.get(field.name))
        for key, allowed in choices.items():
            value = getattr(self, key)
            if value is not None and value not in allowed:
                raise InvalidArgumentError(
                    f"unknown {key} {shown(value)}; choose one of {', '.join(allowed)}"
                )
        trained, count = self.trained_betas, self.num_train_timesteps
        if trained is not None and not (len(trained) == count and all(0 < b < 1 for b in trained)):
            raise InvalidArgumentError(
                f"trained_betas must hold {count} numbers between 0 and 1, got {len(trained)} from "
                f"{min(trained, default=0):g} to {max(trained, default=0):g}"
            )

    @classmethod
    @functools.cache
    def _inherited(cls, name: str) -> dict[str, Any]:
        """The class variables of that name of this class and its bases in one dictionary."""
        found: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            found.update(vars(base).get(name, {}))
        return found

    @classmethod
    def limits(cls) -> Mapping[str, tuple[float, float]]:
        """Lowest and highest value of each key that has them."""
        return cls._inherited("ranges")

    @classmethod
    def allowed(cls) -> Mapping[str, tuple[str, ...]]:
        """The values of each key that has a list of them."""
        return cls._inherited("choices")

    @classmethod
    def known_keys(cls) -> frozenset[str]:
        """Keys of this configuration and of all its subclasses."""
        own = frozenset(field.name for field in fields(cls))
        return own.union(*(subclass.known_keys() for subclass in cls.__subclasses__()))

    @classmethod
    def from_mapping(cls, config: Keys) -> Self:
        """Read the keys of this configuration; others are ignored, and None is the default.

        Raises: InvalidArgumentError: a value of the wrong type or out of range; flow matching.
        """
        for key in ("use_flow_sigmas", "use_dynamic_shifting"):
            if config.get(key):
                raise InvalidArgumentError(f"{key}: flow matching models are not supported")
        if config.get("prediction_type") == "flow_prediction":
            raise InvalidArgumentError(
                "prediction_type 'flow_prediction': flow matching is not supported"
            )
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = config.get(field.name)
            if value is None:
                continue
            if str(field.type).startswith("tuple"):
                value = number_list(field.name, value)
            if str(field.type).startswith("tuple[int"):
                value = tuple(int(number) for number in value)
            values[field.name] = value
        return cls(**values)

    def betas(self) -> np.ndarray:
        """The variance that each training step adds, (num_train_timesteps,) float64."""
        return noise_schedules.betas(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.num_train_timesteps,
            self.trained_betas,
        )

    def alphas_cumprod(self) -> np.ndarray:
        """Share of the signal's variance left after each training step, same shape, float64."""
        return noise_schedules.alphas_cumprod(
            self.betas(), zero_terminal_snr=self.rescale_betas_zero_snr
        )

    def spaced_timesteps(self, num_inference_steps: int, **options: Any) -> np.ndarray:
        """Timesteps to visit, (steps,) float64, falling, not rounded.

        Args:
          options: those of noise_schedules.spaced_timesteps.
        Raises: InvalidArgumentError: not a whole number from 1 to num_train_timesteps.
        """
        return noise_schedules.spaced_timesteps(
            self.timestep_spacing,
            self.check_steps(num_inference_steps),
            self.num_train_timesteps,
            self.steps_offset,
            **options,
        )

    def check_steps(self, num_inference_steps: int) -> int:
        """Raise InvalidArgumentError unless it is a whole number from 1 to num_train_timesteps."""
        highest = self.num_train_timesteps
        if not is_whole(num_inference_steps) or not 1 <= num_inference_steps <= highest:
            raise InvalidArgumentError(
                f"num_inference_steps must be 1 to {highest}, "
                f"got {reprlib.repr(num_inference_steps)}"
            )
        return num_inference_steps


@dataclass(frozen=True, kw_only=True)
class ClippingConfig(SchedulerConfig):
    """Keys of the schedulers that can clip or threshold the clean latents."""

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    rescale_betas_zero_snr: bool = False


def check_variance_type(variance_type: str | None) -> None:
    """Raises: InvalidArgumentError: the UNet would have to predict variances."""
    if variance_type in ("learned", "learned_range"):
        raise InvalidArgumentError(
            f"variance_type '{variance_type}' needs a UNet that predicts variances; "
            "Stable Diffusion's does not"
        )


def _check_value(key: str, kind: str, value: Any, limits: tuple[float, float] | None) -> None:
    fits, expected = _CHECKS[kind]
    if not fits(value):
        raise InvalidArgumentError(f"{key} must be {expected}, got {reprlib.repr(value)}")
    if limits is not None and not limits[0] <= value <= limits[1]:
        low, high = limits
        raise InvalidArgumentError(
            f"{key} must be a number between {round(low)} and {round(high)}, "
            f"got {reprlib.repr(value)}"
        )
