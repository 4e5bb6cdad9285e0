"""Schedulers against diffusers' own classes, step by step and as whole trajectories."""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from runtime import schedulers
from tests.tolerances import (
    KARRAS_TIMESTEP_ABS,
    SCHEDULER_STEP_ABS,
    SCHEDULER_STEP_REL,
    SCHEDULER_TRAJECTORY_REL,
    assert_close,
)

SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = (1, 2, 3, 10, 25, 50)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "ddim": (
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        {"clip_sample": True, "clip_sample_range": 2.0},
        {"clip_sample": False, "thresholding": True, "sample_max_value": 1.5},
        {"clip_sample": False, "beta_schedule": "linear"},
    ),
    "lms": (
        {"steps_offset": 1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"beta_schedule": "linear"},
    ),
}
GRID = [
    (name, BETAS | options | {"timestep_spacing": spacing, "prediction_type": prediction})
    for name in OPTIONS
    for options, spacing, prediction in itertools.product(OPTIONS[name], SPACINGS, PREDICTIONS)
]


def grid_id(case: Any) -> str | None:
    return "-".join(str(v) for v in case.values()) if isinstance(case, dict) else None


def twins(name: str, config: dict[str, Any], steps: int) -> tuple[Any, schedulers.Scheduler]:
    theirs = getattr(diffusers, schedulers.class_name(name))(**config)
    theirs.set_timesteps(steps)
    return theirs, schedulers.create(name, config, steps)


def stand_in(sample: Any, timestep: Any) -> Any:
    """A nonlinear UNet that works on both kinds of arrays."""
    sine = torch.sin if isinstance(sample, torch.Tensor) else np.sin
    return 0.7 * sine(2.0 * sample + 0.001 * float(timestep)) + 0.1 * sample


@pytest.mark.parametrize(("name", "config"), GRID, ids=grid_id)
@pytest.mark.parametrize("steps", STEPS)
def test_trajectory_equals_diffusers(name: str, config: dict[str, Any], steps: int) -> None:
    """In float64, so that our own rounding would show."""
    theirs, ours = twins(name, config, steps)
    karras = config.get("use_karras_sigmas") or config.get("use_exponential_sigmas")
    expected_steps = theirs.timesteps.numpy()
    assert_close(
        ours.timesteps.astype(expected_steps.dtype),
        expected_steps,
        abs_=KARRAS_TIMESTEP_ABS if karras else 1e-30,
    )
    noise = np.random.default_rng(steps).standard_normal((2, 4, 6, 10))
    a, b = torch.from_numpy(noise) * theirs.init_noise_sigma, noise * ours.init_noise_sigma
    for i, timestep in enumerate(theirs.timesteps):
        sample_a = theirs.scale_model_input(a, timestep)
        sample_b = ours.scale_model_input(b, i)
        result_a = theirs.step(stand_in(sample_a, timestep), timestep, a)
        result_b = ours.step(stand_in(sample_b, timestep), i, b)
        a, b = result_a.prev_sample, result_b.prev_sample
        assert_close(b, a.numpy(), rel=SCHEDULER_TRAJECTORY_REL)
    assert_close(
        result_b.pred_original_sample,
        result_a.pred_original_sample.numpy(),
        rel=SCHEDULER_TRAJECTORY_REL,
    )


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize("steps", [2, 10, 50])
def test_single_step_equals_diffusers_in_float32(name: str, steps: int) -> None:
    config = BETAS | OPTIONS[name][0]
    rng = np.random.default_rng(steps)
    theirs, ours = twins(name, config, steps)
    for i, timestep in enumerate(theirs.timesteps):
        sample, noise_pred = rng.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
        given = torch.from_numpy(sample), torch.from_numpy(noise_pred)
        scaled = theirs.scale_model_input(given[0], timestep).numpy()
        expected = theirs.step(given[1], timestep, given[0]).prev_sample.numpy()
        tolerance = {"rel": SCHEDULER_STEP_REL, "abs_": SCHEDULER_STEP_ABS}
        assert_close(ours.scale_model_input(sample, i), scaled, **tolerance)
        assert_close(ours.step(noise_pred, i, sample).prev_sample, expected, **tolerance)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta_equals_diffusers(eta: float) -> None:
    config = BETAS | OPTIONS["ddim"][0]
    theirs, _ = twins("ddim", config, 10)
    ours = schedulers.create("ddim", config, 10, eta=eta)
    assert ours.takes_noise
    rng = np.random.default_rng(0)
    a = b = rng.standard_normal((2, 4, 8, 8))
    for i, timestep in enumerate(theirs.timesteps):
        noise = rng.standard_normal(b.shape)
        tensor = torch.as_tensor(a)
        a = theirs.step(
            stand_in(tensor, timestep),
            timestep,
            tensor,
            eta=eta,
            variance_noise=torch.tensor(noise),
        ).prev_sample.numpy()
        b = ours.step(stand_in(b, timestep), i, b, noise).prev_sample
        assert_close(b, a, rel=SCHEDULER_TRAJECTORY_REL)


def test_ddim_with_zero_terminal_snr_equals_diffusers() -> None:
    config = BETAS | {
        "clip_sample": False,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    theirs, ours = twins("ddim", config, 10)
    a = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 4, 8, 8)))
    b = a.numpy()
    for i, timestep in enumerate(theirs.timesteps):
        a = theirs.step(stand_in(a, timestep), timestep, a).prev_sample
        b = ours.step(stand_in(b, timestep), i, b).prev_sample
        assert_close(b, a.numpy(), rel=SCHEDULER_TRAJECTORY_REL)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_add_noise_equals_diffusers(name: str) -> None:
    theirs, ours = twins(name, BETAS, 20)
    rng = np.random.default_rng(2)
    original, noise = rng.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
    for i in (0, 7, 19):
        expected = theirs.add_noise(
            torch.from_numpy(original), torch.from_numpy(noise), theirs.timesteps[i : i + 1]
        ).numpy()
        assert_close(ours.add_noise(original, noise, i), expected, rel=SCHEDULER_STEP_REL)
