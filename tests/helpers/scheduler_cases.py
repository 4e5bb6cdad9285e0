"""What is compared with diffusers: every scheduler with its options."""

from __future__ import annotations

import itertools
from typing import Any

from sdexport.runtime.schedulers import NAMES
from sdexport.runtime.schedulers.create import CONTINUOUS, EDM_NAMES, build_class
from sdexport.runtime.schedulers.program_names import OWN_CLASSES

SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = (1, 2, 3, 10, 25, 50)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
IN_DIFFUSERS = tuple(name for name in NAMES if name not in OWN_CLASSES.values())
INVERSE = tuple(name for name in NAMES if build_class(name).inverts)
"""Schedulers that lead from clean latents to noise."""
OTHER_MODELS = (CONTINUOUS, *EDM_NAMES)
DISCRETE = tuple(name for name in IN_DIFFUSERS if name not in (*OTHER_MODELS, *INVERSE))
"""Schedulers of diffusers for models that were trained on betas, from noise to clean latents."""
WITHOUT_SAMPLE = ("pndm", "euler_a", "dpm2", "dpm2_a", "dpmsolver_sde", "ddim_inverse", *EDM_NAMES)

Case = tuple[dict[str, Any], dict[str, Any]]
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
BETA_SIGMAS = {"use_beta_sigmas": True}
BOUNDS = {"sigma_min": 0.05, "sigma_max": 10.0}
ZERO_SNR = {"rescale_betas_zero_snr": True}
LIMITS = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}


def _cases(*configs: dict[str, Any], **options: Any) -> list[Case]:
    return [(config, options) for config in configs]


_SPREAD = ({"steps_offset": 1}, KARRAS, EXPONENTIAL, BETA_SIGMAS, {"beta_schedule": "linear"})
_SOLVER = (
    {"steps_offset": 1, "solver_order": 1},
    {"solver_order": 2},
    {"solver_order": 3},
    {"solver_order": 3, **KARRAS},
    {"solver_order": 2, **EXPONENTIAL},
    {"solver_order": 3, **BETA_SIGMAS},
    {"solver_order": 2, **KARRAS, **BOUNDS},
    {"solver_order": 2, **LIMITS},
    {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
    {"beta_schedule": "squaredcos_cap_v2", "solver_order": 2},
)
_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
_EDM = (
    {},
    {"sigma_data": 1.0, "sigma_max": 120.0, "sigma_schedule": "exponential"},
    _SIGMA_MIN,
)
RISING = {"_rising": True}
"""diffusers' inverse solver fails if two levels of these schedules have the same whole timestep."""
OPTIONS: dict[str, list[Case]] = {
    "ddim": [
        *_cases(
            {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
            {"clip_sample": True, "clip_sample_range": 2.0},
            {"clip_sample": False, **LIMITS},
            {"clip_sample": False, "beta_schedule": "linear"},
            {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2"},
            {"clip_sample": False, "trained_betas": [0.001 + 1e-5 * i for i in range(1000)]},
        ),
        *_cases({"clip_sample": False, **ZERO_SNR}),
        *_cases({"clip_sample": False}, eta=0.3),
        *_cases({"clip_sample": False}, eta=1.0),
    ],
    "ddpm": [
        *_cases(
            {"clip_sample": False, "steps_offset": 1},
            {"clip_sample": True, "clip_sample_range": 2.0},
            {"clip_sample": False, **LIMITS},
            {"clip_sample": False, "variance_type": "fixed_small_log"},
            {"clip_sample": False, "variance_type": "fixed_large"},
            {"clip_sample": False, "beta_schedule": "sigmoid"},
            {"clip_sample": False, "beta_schedule": "laplace"},
            {"clip_sample": False, **ZERO_SNR},
        ),
        *_cases({"clip_sample": False}, timesteps=[900, 500, 333, 20, 0]),
    ],
    "pndm": _cases(
        {"skip_prk_steps": True, "steps_offset": 1},
        {"skip_prk_steps": True, "set_alpha_to_one": True},
        {"skip_prk_steps": False},
        {"skip_prk_steps": False, "set_alpha_to_one": True, "beta_schedule": "linear"},
    ),
    "lms": _cases(*_SPREAD, {**EXPONENTIAL, **BOUNDS}, {**BETA_SIGMAS, **BOUNDS}),
    "euler": [
        *_cases(
            *_SPREAD,
            {**KARRAS, **BOUNDS},
            {"interpolation_type": "log_linear"},
            {"timestep_type": "continuous"},
            ZERO_SNR,
            _SIGMA_MIN,
        ),
        *_cases({}, s_churn=4.0, s_tmin=0.1, s_tmax=10.0, s_noise=1.01),
        *_cases({}, timesteps=[900, 500.5, 333, 20, 0]),
        *_cases({}, sigmas=[12.0, 5.0, 2.5, 0.3, 0.0]),
    ],
    "euler_a": _cases({"steps_offset": 1}, {"beta_schedule": "squaredcos_cap_v2"}, ZERO_SNR),
    "heun": [
        *_cases(
            *_SPREAD,
            {**KARRAS, **BOUNDS},
            {"beta_schedule": "exp"},
            {"clip_sample": True, "clip_sample_range": 2.0},
        ),
        *_cases({}, timesteps=[900, 500, 333, 20, 0]),
    ],
    "dpm2": _cases(*_SPREAD, {**KARRAS, **BOUNDS}),
    "dpm2_a": _cases(*_SPREAD, {**EXPONENTIAL, **BOUNDS}),
    "dpmsolver++": [
        *_cases(*_SOLVER),
        *_cases(
            {"solver_type": "heun"},
            {"solver_type": "bh2", "euler_at_final": True, **_SIGMA_MIN},
            {"use_lu_lambdas": True},
            {"lambda_min_clipped": -2.0},
            ZERO_SNR,
            {"algorithm_type": "deis", "solver_order": 3, **_SIGMA_MIN},
            {"algorithm_type": "dpmsolver", **_SIGMA_MIN, **LIMITS},
        ),
        *(
            (
                {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver}
                | ({} if algorithm.endswith("++") else _SIGMA_MIN),
                {},
            )
            for algorithm, order, solver in itertools.product(
                ("dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"), (1, 2, 3), ("midpoint", "heun")
            )
            if (algorithm, order) != ("sde-dpmsolver", 3)
        ),
        *_cases({"solver_order": 3}, timesteps=[900, 500, 333, 200, 20]),
    ],
    "dpmsolver++_single": [
        *_cases(*_SOLVER),
        *(
            (
                {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver}
                | ({} if algorithm.endswith("++") else _SIGMA_MIN),
                {},
            )
            for algorithm, order, solver in itertools.product(
                ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"), (1, 2, 3), ("midpoint", "heun")
            )
        ),
        *_cases({"lambda_min_clipped": -2.0}),
        *_cases({"solver_order": 3}, timesteps=[900, 500, 333, 200, 20]),
    ],
    "dpmsolver_sde": [*_cases(*_SPREAD), *_cases({}, s_noise=1.1)],
    "unipc": _cases(
        *_SOLVER,
        {"solver_type": "bh1", "solver_order": 3, **_SIGMA_MIN},
        {"solver_type": "midpoint", "disable_corrector": [0, 2]},
        {"predict_x0": False, "solver_order": 3, **_SIGMA_MIN},
        {"predict_x0": False, "solver_type": "bh1", **KARRAS, **_SIGMA_MIN},
        {**EXPONENTIAL, **_SIGMA_MIN},
        ZERO_SNR,
    ),
    "deis": _cases(*_SOLVER[:-2], {"solver_order": 3, "lower_order_final": False}, _SOLVER[-1]),
    "lcm": [
        *_cases(
            {},
            {"set_alpha_to_one": False, "timestep_scaling": 3.0},
            {"clip_sample": True},
            LIMITS,
            ZERO_SNR,
        ),
        *_cases({}, original_inference_steps=100),
        *_cases({}, timesteps=[999, 759, 499, 259]),
    ],
    "tcd": [
        *_cases({}, eta=0.25),
        *_cases({}, eta=0.0),
        *_cases({}, eta=1.0),
        *_cases(ZERO_SNR, eta=0.5),
        *_cases({}, eta=0.25, original_inference_steps=100),
        *_cases({}, timesteps=[999, 759, 499, 259], eta=0.5),
    ],
    "sasolver": [
        *_cases(
            {"steps_offset": 1},
            KARRAS,
            EXPONENTIAL,
            BETA_SIGMAS,
            LIMITS,
            {"beta_schedule": "squaredcos_cap_v2"},
            {"lower_order_final": False, "lambda_min_clipped": -2.0},
        ),
        *(
            ({"predictor_order": p, "corrector_order": c, "algorithm_type": kind}, {})
            for p, c, kind in itertools.product(
                (1, 2, 3, 4), (1, 2, 3, 4), ("data_prediction", "noise_prediction")
            )
            if (p + c) % 2 or p == c
        ),
    ],
    "ipndm": _cases({}, {"num_train_timesteps": 200}),
    "ddim_inverse": _cases(
        {"clip_sample": False, "steps_offset": 1},
        {"clip_sample": True, "clip_sample_range": 2.0},
        {"clip_sample": False, "set_alpha_to_one": False, "prediction_type": "sample"},
        {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2"},
    ),
    "dpmsolver++_inverse": _cases(
        {"steps_offset": 1},
        {"solver_order": 1, "solver_type": "heun"},
        {"solver_order": 3, "solver_type": "bh1"},
        {"solver_order": 3, "lower_order_final": False, **EXPONENTIAL, **RISING},
        {"solver_order": 2, "euler_at_final": True, **BETA_SIGMAS, **RISING},
        {"solver_order": 2, **KARRAS},
        {"solver_type": "heun", **LIMITS},
        {"algorithm_type": "dpmsolver", "solver_order": 3},
        {"algorithm_type": "dpmsolver", "solver_type": "heun"},
        {"lambda_min_clipped": -2.0},
        {"beta_schedule": "squaredcos_cap_v2", "solver_order": 2},
    ),
    "edm_euler": [
        *_cases(*_EDM, {"rho": 5.0, **BOUNDS}),
        *_cases({}, s_churn=4.0, s_tmin=0.1, s_tmax=10.0, s_noise=1.01),
    ],
    "edm_dpmsolver++": _cases(
        *_EDM,
        {"solver_order": 1},
        {"solver_order": 3, "algorithm_type": "deis", **_SIGMA_MIN},
        {"solver_order": 3, "lower_order_final": False, "rho": 5.0, **BOUNDS},
        {"solver_type": "heun", **LIMITS},
        {"solver_type": "bh1", "euler_at_final": True},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", **BOUNDS},
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 1},
    ),
}
WITHOUT_SMALLEST_ALPHA = ("ddim", "ddpm", "lcm", "tcd")
"""Schedulers whose last alpha is zero with rescaled betas: epsilon is undefined there."""
SPACED = frozenset({"lcm", "tcd", "dpmsolver++_single", *OTHER_MODELS})
"""Schedulers that ignore timestep_spacing."""


def grid(name: str, *, full: bool) -> list[Case]:
    """Cases of one scheduler: all spacings and predictions with each option, or one pair each."""
    spacings = SPACINGS[:1] if name in SPACED else SPACINGS
    if name == "ddim_inverse":  # has two of them
        spacings = SPACINGS[1:]
    predictions = PREDICTIONS[:2] if name in WITHOUT_SAMPLE else PREDICTIONS
    pairs = list(itertools.product(spacings, predictions))
    found = []
    for k, (config, options) in enumerate(OPTIONS[name]):
        chosen = pairs if full or not k else [pairs[(4 * k) % len(pairs)]]
        for spacing, prediction in chosen:
            if "rescale_betas_zero_snr" in config and name in WITHOUT_SMALLEST_ALPHA:
                prediction = "v_prediction"
            keys = {"timestep_spacing": spacing, "prediction_type": prediction}
            found.append((BETAS | keys | config, options))
    return found


def steps_of(
    config: dict[str, Any], options: dict[str, Any], chosen: tuple[int, ...] = STEPS
) -> tuple[int, ...]:
    """The numbers of steps that are valid for a case."""
    if not config.get("skip_prk_steps", True):
        return tuple(steps for steps in chosen if steps >= 4)
    if config.get("algorithm_type") == "sde-dpmsolver++" and config.get("solver_order") == 3:
        # a wrong sign in diffusers' third-order term, which is ours too, makes longer runs explode
        return tuple(steps for steps in chosen if steps <= 10)
    if "_rising" in config:
        return tuple(steps for steps in chosen if steps <= 10)
    if "timesteps" in options:
        return (len(options["timesteps"]),)
    return (len(options["sigmas"]) - 1,) if "sigmas" in options else chosen
