"""Schedules by name: how the noise levels of the steps are spaced, and what programs call that."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from sdexport.runtime.schedulers.program_names import (
    AUTOMATIC1111,
    COMFYUI,
    FORGE,
    REFORGE,
    RES4LYF,
    SD_CLI,
)

AUTOMATIC = "automatic"
"""AUTOMATIC1111's default of each sampler."""

TIMESTEPS = "timesteps"
"""The plain schedule: the noise levels of the timesteps, which timestep_spacing spaces."""

SPACINGS = ("linspace", "leading", "trailing")
_PLAIN = {"schedule": TIMESTEPS, "use_lu_lambdas": False}
KEYS: Mapping[str, Mapping[str, Any]] = {
    **{
        name: _PLAIN | {"schedule": name}
        for name in (
            *(TIMESTEPS, "karras", "exponential", "beta", "normal", "simple", "sgm_uniform"),
            *("ddim_uniform", "beta_timesteps", "kl_optimal", "linear_quadratic"),
            *("polyexponential", "sd_turbo", "align_your_steps", "align_your_steps_xl"),
        )
    },
    "lu": {
        "schedule": None,
        "use_lu_lambdas": True,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
    },
    **{spacing: _PLAIN | {"timestep_spacing": spacing} for spacing in SPACINGS},
}
"""Schedule -> the keys of a configuration that select it."""

EDM_KEYS: Mapping[str, Mapping[str, Any]] = {
    "karras": {"schedule": None, "sigma_schedule": "karras"},
    "exponential": {"schedule": None, "sigma_schedule": "exponential"},
}
"""The same for models with EDM preconditioning, where these are diffusers' keys."""

LABELS: Mapping[str, str] = {
    AUTOMATIC: "Automatic",
    TIMESTEPS: "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "lu": "Lu",
    "normal": "Normal",
    "simple": "Simple",
    "sgm_uniform": "SGM Uniform",
    "ddim_uniform": "DDIM",
    "beta_timesteps": "Beta Timesteps",
    "kl_optimal": "KL Optimal",
    "linear_quadratic": "Linear Quadratic",
    "polyexponential": "Polyexponential",
    "sd_turbo": "SD Turbo",
    "align_your_steps": "Align Your Steps",
    "align_your_steps_xl": "Align Your Steps XL",
    "linspace": "Linspace",
    "leading": "Leading",
    "trailing": "Trailing",
}
"""AUTOMATIC1111's names; made up in its style where it lacks one."""

PROGRAM_SCHEDULES: Mapping[str, Mapping[str, str]] = {
    AUTOMATIC1111: {
        "Automatic": AUTOMATIC,
        "Uniform": TIMESTEPS,
        "Karras": "karras",
        "Exponential": "exponential",
        "Polyexponential": "polyexponential",
        "SGM Uniform": "sgm_uniform",
        "KL Optimal": "kl_optimal",
        "Align Your Steps": "align_your_steps",
        "Simple": "simple",
        "Normal": "normal",
        "DDIM": "ddim_uniform",
        "Beta": "beta",
    },
    FORGE: {"Turbo": "trailing", "Align Your Steps 11": "align_your_steps"},
    COMFYUI: {
        "simple": "simple",
        "sgm_uniform": "sgm_uniform",
        "karras": "karras",
        "exponential": "exponential",
        "ddim_uniform": "ddim_uniform",
        "beta": "beta",
        "normal": "normal",
        "kl_optimal": "kl_optimal",
        "linear_quadratic": "linear_quadratic",
        "AlignYourStepsScheduler": "align_your_steps",
        "SDTurboScheduler": "sd_turbo",
    },
    SD_CLI: {
        "discrete": "normal",
        "karras": "karras",
        "exponential": "exponential",
        "ays": "align_your_steps",
        "sgm_uniform": "sgm_uniform",
        "simple": "simple",
        "kl_optimal": "kl_optimal",
        "beta": "beta",
    },
}
"""Program -> its name of a schedule -> ours."""

_FLOW = "it is for flow matching models"
_MISSING = "it is not implemented"
SCHEDULES_NOT_SUPPORTED: Mapping[str, Mapping[str, str]] = {
    FORGE: {"Align Your Steps GITS": _MISSING, "Align Your Steps 32": _MISSING},
    REFORGE: dict.fromkeys(
        (
            *("Sinusoidal SF", "Invcosinusoidal SF", "React Cosinusoidal DynSF", "Cosine", "Phi"),
            *("Cosine-exponential Blend", "Laplace", "Karras Dynamic", "Align Your Steps Custom"),
        ),
        _MISSING,
    ),
    RES4LYF: {"beta57": _MISSING, "bong_tangent": _MISSING},
    SD_CLI: {
        "gits": _MISSING,
        "smoothstep": _MISSING,
        "lcm": "the sampler lcm has its own timesteps",
        "bong_tangent": _MISSING,
        "ltx2": _FLOW,
        "logit_normal": _FLOW,
        "flux2": _FLOW,
        "flux": _FLOW,
    },
}
"""Program -> its name of a schedule that is missing here -> why."""

_SHORT = {"k": "karras", "ka": "karras", "exp": "exponential", "ays": "align_your_steps"}
"""Endings of the internal names of InvokeAI and AUTOMATIC1111."""

# AUTOMATIC1111's schedule of a sampler if its schedule type is Automatic; others have a plain one.
AUTOMATIC_SCHEDULES: Mapping[str, str] = {
    "dpm++_2m": "karras",
    "dpm++_sde": "karras",
    "dpm++_2s_a": "karras",
    "dpm2": "karras",
    "dpm2_a": "karras",
    "dpm++_2m_sde": "exponential",
    "dpm++_2m_sde_heun": "exponential",
    "dpm++_3m_sde": "exponential",
}


def normalized(name: str) -> str:
    """A name without what programs write differently.

    Case, spaces, hyphens, underscores and brackets; "pp" is "++", and "ancestral" is "a".
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_\-()]+", "", text).replace("pp", "++").replace("ancestral", "a")


def _find_schedules() -> dict[str, str]:
    found = {normalized(name): name for name in LABELS}
    found |= {normalized(label): name for name, label in LABELS.items()}
    for names in PROGRAM_SCHEDULES.values():
        found |= {normalized(theirs): ours for theirs, ours in names.items()}
    return found


_SCHEDULES = _find_schedules()
"""Normalized name -> schedule."""


def find_schedule(name: str) -> str | None:
    """Our name of a schedule, from that of any program; None if unknown."""
    return _SCHEDULES.get(normalized(name))


def why_no_schedule(name: str) -> tuple[str, str] | None:
    """The program that has a schedule of this name, and why there is none here; None if unknown."""
    for program, names in SCHEDULES_NOT_SUPPORTED.items():
        for theirs, why in names.items():
            if normalized(theirs) == normalized(name):
                return program, why
    return None


def schedule_endings(name: str) -> dict[str, str]:
    """What is left of a normalized sampler's name without a schedule at its end -> schedule."""
    endings = {**_SCHEDULES, **_SHORT}
    return {
        name.removesuffix(ending): endings[ending]
        for ending in sorted(endings, key=len)  # "SGM Uniform" comes before "Uniform"
        if name.endswith(ending) and name != ending
    }


def schedule_of(keys: Mapping[str, Any]) -> str:
    """The schedule that the keys of a configuration select; "automatic" if the sampler has none."""
    if "schedule" not in keys:
        return AUTOMATIC
    if keys["schedule"] is not None:
        return str(keys["schedule"])
    if "sigma_schedule" in keys:  # EDM
        return str(keys["sigma_schedule"])
    flags = {f"use_{name}_sigmas": name for name in ("karras", "exponential", "beta")}
    flags = {"use_karras_sigmas": "karras", "use_lu_lambdas": "lu", **flags}
    return next((name for key, name in flags.items() if keys.get(key)), TIMESTEPS)
