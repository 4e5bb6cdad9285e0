"""Configurations of schedulers: diffusers' keys, checked one by one."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from sdexport.runtime.schedulers import noise_schedules

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MAX_TRAIN_TIMESTEPS = 100_000

# Keys of diffusers' samplers that change nothing here.
WITHOUT_EFFECT = frozenset(
    {
        "flow_shift",
        "noise_sampler_seed",
        "shift_terminal",
        "time_shift_type",
        "use_dynamic_shifting",
        "use_flow_sigmas",
    }
)
KNOWN_KEYS = WITHOUT_EFFECT.union(
    {
        "algorithm_type",
        "beta_end",
        "beta_schedule",
        "beta_start",
        "clip_sample",
        "clip_sample_range",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "euler_at_final",
        "final_sigmas_type",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "num_train_timesteps",
        "original_inference_steps",
        "predict_x0",
        "prediction_type",
        "rescale_betas_zero_snr",
        "sample_max_value",
        "set_alpha_to_one",
        "sigma_max",
        "sigma_min",
        "skip_prk_steps",
        "solver_order",
        "solver_p",
        "solver_type",
        "steps_offset",
        "thresholding",
        "timestep_scaling",
        "timestep_spacing",
        "timestep_type",
        "trained_betas",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    }
)
"""Keys of some sampler's configuration: none of them is strange in another's."""


def is_number(value: Any) -> bool:
    """Whether it is a finite number of a size that schedules can hold; booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def is_whole(value: Any) -> bool:
    """Whether it is an integer; booleans are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple)


# What a field's annotation asks for.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (is_whole, "a whole number"),
    "float": (is_number, "a number"),
    "float | None": (is_number, "a number"),
    "Bound": (lambda v: is_number(v) or v == -math.inf, "a number or -Infinity"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "str": (lambda v: isinstance(v, str), "a text"),
    "str | None": (lambda v: isinstance(v, str), "a text"),
    "tuple[float, ...] | None": (_is_list, "a list of numbers"),
    "tuple[int, ...]": (_is_list, "a list of whole numbers"),
}
Bound = float

_ABOVE_ZERO = 1e-12
_RANGES: dict[str, tuple[float, float]] = {
    "num_train_timesteps": (1, MAX_TRAIN_TIMESTEPS),
    "steps_offset": (0, MAX_TRAIN_TIMESTEPS),
    "beta_start": (_ABOVE_ZERO, 1 - _ABOVE_ZERO),
    "beta_end": (_ABOVE_ZERO, 1 - _ABOVE_ZERO),
    "clip_sample_range": (_ABOVE_ZERO, 1e9),
    "dynamic_thresholding_ratio": (0, 1),
    "sample_max_value": (_ABOVE_ZERO, 1e9),
    "sigma_min": (_ABOVE_ZERO, 1e9),
    "sigma_max": (_ABOVE_ZERO, 1e9),
    "solver_order": (1, 3),
    "original_inference_steps": (1, MAX_TRAIN_TIMESTEPS),
    "timestep_scaling": (0, 1e9),
}


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

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Values that a text may take, beside those of every scheduler."""

    def __post_init__(self) -> None:
        for key, kind in ((field.name, str(field.type)) for field in fields(self)):
            value = getattr(self, key)
            if value is None and kind.endswith("None"):
                continue
            fits, wanted = _KINDS[kind]
            if not fits(value):
                raise ValueError(f"{key} must be {wanted}, got {reprlib.repr(value)}")
            low, high = _RANGES.get(key, (-math.inf, math.inf))
            if key in _RANGES and not low <= value <= high:
                raise ValueError(
                    f"{key} must be a number between {round(low)} and {round(high)}, "
                    f"got {reprlib.repr(value)}"
                )
        everywhere = {
            "prediction_type": PREDICTION_TYPES,
            "beta_schedule": noise_schedules.BETA_SCHEDULES,
            "timestep_spacing": noise_schedules.SPACINGS,
        }
        for key, allowed in {**everywhere, **self.choices}.items():
            value = getattr(self, key)
            if value is not None and value not in allowed:
                raise ValueError(f"unknown {key} '{value}'; choose one of {', '.join(allowed)}")
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
        """Take the known keys of a scheduler_config.json; None means the default.

        Raises: ValueError: a value of the wrong type or out of range; flow matching.
        """
        for key in ("use_flow_sigmas", "use_dynamic_shifting"):
            if config.get(key):
                raise ValueError(f"{key}: flow matching models are not supported")
        if config.get("prediction_type") == "flow_prediction":
            raise ValueError("prediction_type 'flow_prediction': flow matching is not supported")
        known = cls.known_keys()
        values = {k: v for k, v in config.items() if k in known and v is not None}
        if "trained_betas" in values:
            values["trained_betas"] = number_list("trained_betas", values["trained_betas"])
        if "disable_corrector" in values:
            listed = number_list("disable_corrector", values["disable_corrector"])
            values["disable_corrector"] = tuple(int(index) for index in listed)
        return cls(**values)

    def betas(self) -> np.ndarray:
        return noise_schedules.betas(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.num_train_timesteps,
            self.trained_betas,
        )

    def check_steps(self, num_inference_steps: int) -> int:
        """Raise ValueError unless it is a whole number from 1 to num_train_timesteps."""
        highest = self.num_train_timesteps
        if not is_whole(num_inference_steps) or not 1 <= num_inference_steps <= highest:
            raise ValueError(
                f"num_inference_steps must be 1 to {highest}, "
                f"got {reprlib.repr(num_inference_steps)}"
            )
        return num_inference_steps


def number_list(name: str, values: Any) -> tuple[float, ...]:
    """A list, tuple or array of finite numbers as a tuple.

    Raises: ValueError: anything else.
    """
    found = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(found, (list, tuple)) or not all(is_number(value) for value in found):
        raise ValueError(f"{name} must be a list of numbers, got {reprlib.repr(values)}")
    return tuple(float(value) for value in found)


def custom_schedule(
    name: str, values: Any, high: float, *, whole: bool = False, length: int | None = None
) -> np.ndarray:
    """The caller's own timesteps or sigmas, float64, checked to fall from below `high` to 0.

    Raises: ValueError: not a list of falling numbers in that range, or not `length` of them.
    """
    found = np.array(number_list(name, values))
    if not len(found) or not np.all((found >= 0) & (found < high)):
        raise ValueError(f"{name} must be numbers from 0 to below {high:g}")
    if np.any(np.diff(found) >= 0):
        raise ValueError(f"{name} must fall from each to the next")
    if whole and np.any(found != np.round(found)):
        raise ValueError(f"{name} must be whole numbers")
    if length is not None and len(found) != length:
        raise ValueError(f"{name}: expected {length} for num_inference_steps, got {len(found)}")
    return found


def number_option(name: str, value: Any, low: float, high: float) -> float:
    """An option of a scheduler, checked. Raises: ValueError: no number, or out of range."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {reprlib.repr(value)}")
    return float(value)
