"""Schedulers against hand-computed values and wrong configurations; parity is in tests/parity."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from runtime import schedulers

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_scheduler_recovers_the_clean_sample(name: str) -> None:
    """With the true noise as prediction every sampler must walk back to the clean latents."""
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1, 4, 8, 8))
    sampler = schedulers.create(name, SD | {"clip_sample": False}, 20)
    sample = sampler.add_noise(clean, noise, 0)
    for i in range(20):
        result = sampler.step(noise, i, sample)
        sample = result.prev_sample
        np.testing.assert_allclose(result.pred_original_sample, clean, atol=1e-9)
    np.testing.assert_allclose(sample, clean, atol=1e-9)


def test_lms_first_step_is_euler() -> None:
    sampler = schedulers.create("lms", SD, 10)
    assert isinstance(sampler, schedulers.LMSDiscreteScheduler)
    sample, noise_pred = np.full((1, 1, 1, 1), 3.0), np.full((1, 1, 1, 1), 0.5)
    expected = 3.0 + 0.5 * (sampler.sigmas[1] - sampler.sigmas[0])
    assert sampler.step(noise_pred, 0, sample).prev_sample.item() == pytest.approx(expected)


def test_lms_coefficients_integrate_polynomials_exactly() -> None:
    """Four slopes stand for any cubic: the step must equal its integral."""
    sampler = schedulers.create("lms", SD, 10)
    assert isinstance(sampler, schedulers.LMSDiscreteScheduler)
    sigmas = sampler.sigmas[:6]
    cubic = np.polynomial.Polynomial([0.3, -0.2, 0.05, 0.01])
    sample = np.zeros((1, 1, 1, 1))
    for i in range(5):
        sample = np.zeros((1, 1, 1, 1))
        slope = np.full((1, 1, 1, 1), cubic(sigmas[i]))
        sample = sampler.step(slope, i, sample).prev_sample
    whole = cubic.integ()
    assert sample.item() == pytest.approx(whole(sigmas[5]) - whole(sigmas[4]), rel=1e-9)


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "steep"}, "unknown beta_schedule 'steep'; choose one of linear"),
        ({"prediction_type": "x"}, "unknown prediction_type 'x'; choose one of epsilon"),
        ({"timestep_spacing": "even"}, "unknown timestep_spacing 'even'; choose one of linspace"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps must be a whole number"),
        ({"trained_betas": [0.1, 2.0]}, "between 0 and 1"),
    ],
)
def test_scheduler_refuses_wrong_configuration(
    name: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        schedulers.create(name, SD | config, 10)


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_scheduler_refuses_wrong_number_of_steps(name: str, steps: int) -> None:
    with pytest.raises(ValueError, match="num_inference_steps"):
        schedulers.create(name, SD, steps)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_scheduler_refuses_wrong_steps(name: str) -> None:
    sampler = schedulers.create(name, SD, 5)
    sample = np.zeros((1, 4, 8, 8), np.float32)
    with pytest.raises(ValueError, match="one shape"):
        sampler.step(np.zeros((1, 4, 8, 9), np.float32), 0, sample)
    with pytest.raises(ValueError, match=r"not within 0\.\.4"):
        sampler.step(sample, 5, sample)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_scheduler_keeps_float32(name: str) -> None:
    sampler = schedulers.create(name, SD, 5)
    sample = np.ones((1, 4, 8, 8), np.float32)
    result = sampler.step(sampler.scale_model_input(sample, 0), 0, sample)
    assert result.prev_sample.dtype == result.pred_original_sample.dtype == np.float32


def test_ddim_needs_noise_for_eta() -> None:
    sampler = schedulers.create("ddim", SD, 5, eta=1.0)
    sample = np.zeros((1, 4, 8, 8), np.float32)
    with pytest.raises(ValueError, match="eta > 0 needs noise"):
        sampler.step(sample, 0, sample)
    with pytest.raises(ValueError, match="eta must be between 0 and 1"):
        schedulers.create("ddim", SD, 5, eta=1.5)


def test_create_names_what_it_does_not_know(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="unknown scheduler 'magic'; choose one of ddim, lms"):
        schedulers.create("magic", SD, 5)
    with caplog.at_level(logging.WARNING):
        schedulers.create("LMSDiscreteScheduler", SD | {"wobble": 3, "_private": 1}, 5)
    assert [r.getMessage() for r in caplog.records] == ["LMSDiscreteScheduler ignores wobble"]


def test_lms_refuses_what_it_leaves_out() -> None:
    with pytest.raises(ValueError, match="use_beta_sigmas needs SciPy"):
        schedulers.create("lms", SD | {"use_beta_sigmas": True}, 5)
    with pytest.raises(ValueError, match="exclude each other"):
        schedulers.create(
            "lms", SD | {"use_karras_sigmas": True, "use_exponential_sigmas": True}, 5
        )
