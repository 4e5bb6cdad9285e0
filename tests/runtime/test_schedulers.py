"""Schedulers against hand-computed values and wrong arguments; parity is in tests/parity."""

from __future__ import annotations

import logging
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import schedulers
from sdexport.runtime.scheduler_argument import choose_scheduler
from sdexport.runtime.schedulers.create import CONTINUOUS, EDM_NAMES, known_keys
from sdexport.runtime.schedulers.latent_scaling import derivative, variance_exploding
from sdexport.runtime.schedulers.linear_combination import NOISE_PRED, SAMPLE, Combination
from sdexport.runtime.schedulers.sigma_schedules import SigmaConfig, sigma_grid, training_sigmas
from sdexport.runtime.timestep_plan import ImageShare, plan_timesteps
from tests.helpers.scheduler_cases import INVERSE
from tests.tolerances import CLEAN_SAMPLE_ABS, DEIS_CLEAN_SAMPLE_ABS, LMS_REL

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAIN = SD | {"clip_sample": False}
SIGMA_BASED = (
    "lms",
    "euler",
    "heun",
    "dpm2",
    "dpm2_a",
    "dpmsolver_sde",
    "dpm++_2s_a",
    "dpm++_3m_sde",
)
STOCHASTIC = (
    "ddpm",
    "euler_a",
    "dpm2_a",
    "dpmsolver_sde",
    "lcm",
    "tcd",
    "dpm++_2s_a",
    "dpm++_3m_sde",
    "sasolver",
)


def run(sampler: schedulers.Scheduler, sample: np.ndarray, begin: int = 0) -> np.ndarray:
    rng = np.random.default_rng(3)
    for i in range(begin, len(sampler.timesteps)):
        noise = rng.standard_normal(sample.shape).astype(sample.dtype)
        scaled = sampler.scale_model_input(sample, i)
        sample = sampler.step(np.sin(scaled), i, sample, noise).prev_sample
    return sample


@pytest.mark.parametrize("name", sorted({*schedulers.NAMES} - {*STOCHASTIC, *INVERSE, CONTINUOUS}))
def test_scheduler_recovers_the_clean_sample(name: str) -> None:
    """With the true prediction every sampler must return to the clean latents."""
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1, 4, 8, 8))
    sampler = schedulers.create(name, PLAIN | {"set_alpha_to_one": True}, 20)
    sample = sampler.add_noise(clean, noise, 0)
    for i in range(len(sampler.timesteps)):
        prediction = noise
        if name in EDM_NAMES:  # whose models predict a mix of clean latents and noise
            w = sampler.original_weights(i)
            prediction = (clean - w.sample * sample) / w.noise_pred
        result = sampler.step(prediction, i, sample)
        sample = result.prev_sample
        if name != "pndm":  # whose warm-up steps stand between timesteps
            np.testing.assert_allclose(
                result.pred_original_sample, clean, rtol=0, atol=CLEAN_SAMPLE_ABS
            )
    # DEIS ends at the first training timestep, not at zero noise
    atol = DEIS_CLEAN_SAMPLE_ABS if name == "deis" else CLEAN_SAMPLE_ABS
    np.testing.assert_allclose(sample, clean, rtol=0, atol=atol)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_scheduler_may_be_used_again(name: str) -> None:
    sampler = schedulers.create(name, PLAIN, 6)
    sample = np.random.default_rng(1).standard_normal((1, 4, 8, 8))
    first = run(sampler, sample)
    run(sampler, sample, begin=2)
    assert np.array_equal(first, run(sampler, sample))


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_scheduler_keeps_no_array_that_it_returns(name: str) -> None:
    """Whatever a caller does to arrays between steps, the trajectory is the same."""
    sample = np.random.default_rng(1).standard_normal((1, 4, 8, 8))
    sampler = schedulers.create(name, PLAIN, 6)
    expected = run(schedulers.create(name, PLAIN, 6), sample)
    rng = np.random.default_rng(3)
    for i in range(len(sampler.timesteps)):
        noise = rng.standard_normal(sample.shape)
        prediction = np.sin(sampler.scale_model_input(sample, i))
        result = sampler.step(prediction, i, sample, noise)
        sample = result.prev_sample.copy()
        for array in (prediction, noise, result.prev_sample, result.pred_original_sample):
            array.fill(np.nan)
    assert np.array_equal(sample, expected)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_step_allocates_only_its_results(name: str) -> None:
    sampler = schedulers.create(name, PLAIN, 8)
    sample = np.ones((1, 4, 64, 64), np.float32)
    run(sampler, sample)
    noise, worst = sample.copy(), 0
    tracemalloc.start()
    try:
        for i in range(len(sampler.timesteps)):
            tracemalloc.clear_traces()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            result = sampler.step(sample, i, sample, noise)
            worst = max(worst, tracemalloc.get_traced_memory()[1] - before)
            del result
    finally:
        tracemalloc.stop()
    # the first step allocates nothing either: the shapes are those of the run before
    assert worst < 2 * sample.nbytes + 8192


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", schedulers.NAMES)
def test_scheduler_keeps_the_dtype(name: str, dtype: type) -> None:
    sampler = schedulers.create(name, SD, 5)
    sample = np.ones((1, 4, 8, 8), dtype)
    noise = np.ones((1, 4, 8, 8), np.float32)
    result = sampler.step(sampler.scale_model_input(sample, 0), 0, sample, noise)
    assert result.prev_sample.dtype == result.pred_original_sample.dtype == dtype
    assert sampler.scale_model_input(sample, 0).dtype == dtype
    assert sampler.add_noise(sample, noise, 0).dtype == dtype
    assert sampler.timesteps.dtype == np.float64


def test_lms_first_step_is_euler() -> None:
    sampler = schedulers.create("lms", SD, 10)
    assert isinstance(sampler, schedulers.LMSDiscreteScheduler)
    sample, noise_pred = np.full((1, 1, 1, 1), 3.0), np.full((1, 1, 1, 1), 0.5)
    expected = 3.0 + 0.5 * (sampler.sigmas[1] - sampler.sigmas[0])
    assert sampler.step(noise_pred, 0, sample).prev_sample.item() == pytest.approx(
        expected, rel=LMS_REL
    )


def test_lms_coefficients_integrate_polynomials_exactly() -> None:
    """Four slopes stand for any cubic: the step must equal its integral."""
    sampler = schedulers.create("lms", SD, 10)
    assert isinstance(sampler, schedulers.LMSDiscreteScheduler)
    sigmas = sampler.sigmas[:6]
    cubic = np.polynomial.Polynomial([0.3, -0.2, 0.05, 0.01])
    for i in range(5):
        slope = np.full((1, 1, 1, 1), cubic(sigmas[i]))
        sample = sampler.step(slope, i, np.zeros((1, 1, 1, 1))).prev_sample
    whole = cubic.integ()
    assert sample.item() == pytest.approx(whole(sigmas[5]) - whole(sigmas[4]), rel=LMS_REL)


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "steep"}, "unknown beta_schedule 'steep'; choose one of linear"),
        ({"prediction_type": "x"}, "unknown prediction_type 'x'; choose one of epsilon"),
        ({"prediction_type": "flow_prediction"}, "flow matching is not supported"),
        ({"use_flow_sigmas": True}, "flow matching models are not supported"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps must be a whole number"),
        ({"num_train_timesteps": 10**400}, "num_train_timesteps must be a number between"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be a number between"),
        ({"trained_betas": [0.1, 2.0]}, "between 0 and 1"),
        ({"trained_betas": [0.1] * 999 + [2.0]}, "between 0 and 1"),
        ({"trained_betas": [0.1] * 999 + [float("nan")]}, "trained_betas must be a list"),
        ({"trained_betas": "0.1"}, "trained_betas must be a list of numbers"),
        ({"trained_betas": [[0.1], 2]}, "trained_betas must be a list of numbers"),
        ({"beta_start": float("nan")}, "beta_start must be a number"),
        ({"beta_start": "0.1"}, "beta_start must be a number"),
        ({"beta_end": True}, "beta_end must be a number"),
        ({"beta_end": 10**400}, "beta_end must be a number"),
        ({"beta_schedule": ["linear"]}, "beta_schedule must be a string"),
    ],
)
def test_scheduler_rejects_a_wrong_configuration(
    name: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        schedulers.create(name, SD | config, 10)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("ddim", {"timestep_spacing": "even"}, "unknown timestep_spacing 'even'; choose one of"),
        ("ddim", {"clip_sample": "yes"}, "clip_sample must be true or false"),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "pure noise"),
        ("ddim", {"steps_offset": 500}, "steps_offset 500 leads to timestep"),
        ("pndm", {"prediction_type": "sample"}, "unknown prediction_type 'sample'"),
        ("pndm", {"timestep_spacing": "trailing", "steps_offset": 10**9}, "steps_offset must be"),
        ("ddpm", {"variance_type": "learned_range"}, "needs a UNet that predicts variances"),
        ("dpmsolver++", {"variance_type": "learned"}, "needs a UNet that predicts variances"),
        ("dpmsolver++", {"algorithm_type": "dpmsolver"}, "cannot end at final_sigmas_type 'zero'"),
        ("dpmsolver++", {"algorithm_type": "rk4"}, "unknown algorithm_type 'rk4'"),
        ("dpmsolver++", {"solver_order": 4}, "solver_order must be a number between 1 and 3"),
        ("dpmsolver++", {"lambda_min_clipped": 99.0}, "lambda_min_clipped leaves no timestep"),
        ("dpmsolver++_single", {"algorithm_type": "sde-dpmsolver"}, "unknown algorithm_type"),
        ("deis", {"algorithm_type": "sde-dpmsolver++"}, "unknown algorithm_type"),
        ("unipc", {"solver_p": "ddim"}, "solver_p"),
        ("unipc", {"lower_order_final": False}, "lower_order_final false needs"),
        ("unipc", {"disable_corrector": 3}, "disable_corrector must be a list"),
        ("euler", {"final_sigmas_type": "one"}, "unknown final_sigmas_type 'one'"),
        ("euler", {"sigma_min": 3.0, "sigma_max": 2.0}, "must be below sigma_max"),
        ("edm_euler", {"sigma_schedule": "beta"}, "unknown sigma_schedule 'beta'"),
        ("edm_euler", {"sigma_min": 3.0, "sigma_max": 2.0}, "must be below sigma_max"),
        ("edm_euler", {"prediction_type": "sample"}, "unknown prediction_type 'sample'"),
        ("edm_dpmsolver++", {"algorithm_type": "dpmsolver"}, "unknown algorithm_type"),
        (
            "edm_dpmsolver++",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            "solver_order 1 or 2 with EDM",
        ),
        ("lcm", {"original_inference_steps": 5000}, "original_inference_steps must be 1 to 1000"),
        ("lcm", {"original_inference_steps": 4}, "num_inference_steps must be 1 to 4"),
    ],
)
def test_scheduler_rejects_unsupported_keys(
    name: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        schedulers.create(name, SD | config, 10)


@pytest.mark.parametrize("name", [*SIGMA_BASED, "dpmsolver++", "unipc", "deis"])
@pytest.mark.parametrize("keys", [("karras", "exponential"), ("exponential", "beta")])
def test_scheduler_rejects_two_sigma_schedules(name: str, keys: tuple[str, ...]) -> None:
    if name == "euler_a":
        pytest.skip("has none of these keys")
    with pytest.raises(InvalidArgumentError, match="exclude each other"):
        schedulers.create(name, SD | {f"use_{key}_sigmas": True for key in keys}, 5)


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5, "10", True, 10**400])
def test_scheduler_rejects_a_wrong_number_of_steps(name: str, steps: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="num_inference_steps"):
        schedulers.create(name, SD, steps)


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 3, 61, 999, 1000])
def test_scheduler_is_finite_or_says_why(name: str, spacing: str, steps: int) -> None:
    config = PLAIN | {"timestep_spacing": spacing, "steps_offset": 1}
    try:
        sampler = schedulers.create(name, config, steps)
    except InvalidArgumentError as error:
        assert "\n" not in str(error)
        return
    assert np.isfinite(sampler.timesteps).all()
    assert name in EDM_NAMES or sampler.timesteps.min() >= 0
    sample = np.full((1, 1, 2, 2), 0.5)
    assert np.isfinite(run(sampler, sample)).all()


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_step_rejects_wrong_arguments(name: str) -> None:
    sampler = schedulers.create(name, SD, 5)
    sample = np.zeros((1, 4, 8, 8), np.float32)
    with pytest.raises(InvalidArgumentError, match="must have the same shape"):
        sampler.step(np.zeros((1, 4, 8, 9), np.float32), 0, sample, sample)
    with pytest.raises(InvalidArgumentError, match=r"is not within 0\.\."):
        sampler.step(sample, len(sampler.timesteps), sample, sample)
    with pytest.raises(InvalidArgumentError, match="must be float32 or float64"):
        sampler.step(sample, 0, sample.astype(np.int32), sample)
    needed = [i for i in range(len(sampler.timesteps)) if sampler.takes_noise(i)]
    for i in needed[:1]:
        with pytest.raises(InvalidArgumentError, match=f"step {i} needs noise of shape"):
            sampler.step(sample, i, sample)
    if sampler.order == 2:
        with pytest.raises(InvalidArgumentError, match="begin at an even step index, got 3"):
            sampler.step(sample, 3, sample, sample)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
        ("dpm++_2s_a", {"noise_share": 1.5}, "noise_share must be between 0 and 1, got 1.5"),
        ("dpm++_3m_sde", {"s_noise": -1}, "s_noise must be between 0"),
        ("ddim", {"eta": "1"}, "eta must be between 0 and 1"),
        ("tcd", {"eta": float("nan")}, "eta must be between 0 and 1"),
        ("lms", {"eta": 0.5}, "lms has no option 'eta'; choose one of num_train_timesteps, "),
        ("pndm", {"eta": 0.5}, "pndm has no option 'eta'"),
        ("ddim", {"s_churn": 1}, "ddim has no option 's_churn'; choose one of "),
        ("euler", {"s_churn": -1}, "s_churn must be between 0"),
        ("euler", {"timesteps": [1, 2, 3]}, "timesteps must fall from each to the next"),
        ("euler", {"timesteps": [1000, 2, 1]}, "timesteps must be numbers from 0 to below 1000"),
        ("euler", {"timesteps": [5, 2]}, "timesteps: expected 3"),
        ("euler", {"timesteps": "abc"}, "timesteps must be a list of numbers"),
        ("euler", {"sigmas": [3.0, 2.0, 1.0]}, "sigmas: expected 4"),
        ("euler", {"sigmas": [3.0, 2.0, 2.0, 0.0]}, "sigmas must fall"),
        ("ddpm", {"timesteps": [5.5, 2, 1]}, "timesteps must be whole numbers"),
        ("heun", {"timesteps": []}, "timesteps must be numbers"),
        ("lcm", {"strength": 2}, "strength must be between 0 and 1"),
        ("lcm", {"strength": 0.01}, "num_inference_steps must be 1 to 0"),
        ("lcm", {"timesteps": [999, 500, 100], "strength": 0.5}, "give one or the other"),
    ],
)
def test_create_rejects_wrong_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        schedulers.create(name, SD, 3, **options)


def test_create_rejects_timesteps_with_a_sigma_schedule() -> None:
    for name in ("euler", "heun", "dpmsolver++", "dpmsolver++_single"):
        with pytest.raises(InvalidArgumentError, match="give one or the other"):
            schedulers.create(name, SD | {"use_karras_sigmas": True}, None, timesteps=[500, 20])


def test_create_rejects_a_sampler_for_another_parametrisation() -> None:
    """Row C8: samples would be noise, without a word."""
    edm = {"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}
    for config in (edm, {"sigma_data": 0.5}, {"_class_name": "EDMDPMSolverMultistepScheduler"}):
        for name in ("euler", "dpm++_2m_karras", "ddim"):
            with pytest.raises(InvalidArgumentError, match="choose edm_euler or edm_dpmsolver"):
                schedulers.create(name, config, 5)
    for name in EDM_NAMES:
        with pytest.raises(InvalidArgumentError, match="trained for EulerDiscreteScheduler"):
            schedulers.create(name, SD | {"_class_name": "EulerDiscreteScheduler"}, 5)
        assert len(schedulers.create(name, edm, 5).timesteps) == 5
    for sigmas, message in (([1.0, 0.0, 0.0], "must fall"), ([80.0, 2.0], "expected 3")):
        with pytest.raises(InvalidArgumentError, match=message):
            schedulers.create("edm_euler", {}, 2, sigmas=sigmas)
    own = schedulers.create("edm_dpmsolver++", {}, None, sigmas=[80.0, 2.0, 0.0])
    np.testing.assert_array_equal(own.timesteps, 0.25 * np.log([80.0, 2.0]))


def test_ipndm_is_for_models_of_continuous_time(caplog: pytest.LogCaptureFixture) -> None:
    """Row C8: with Stable Diffusion it gives noise, in diffusers too."""
    with pytest.raises(InvalidArgumentError, match="choose lms, pndm or another"):
        schedulers.create("ipndm", SD | {"_class_name": "PNDMScheduler"}, 5)
    with caplog.at_level(logging.WARNING):
        schedulers.create("ipndm", {"_class_name": "IPNDMScheduler"}, 5)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "IPNDMScheduler is for models of continuous time"
    ]
    with pytest.raises(InvalidArgumentError, match="trained_betas are not supported"):
        schedulers.create("ipndm", {"trained_betas": [0.1] * 1000}, 5)


def test_create_counts_the_callers_own_schedule() -> None:
    assert len(schedulers.create("euler", SD, None, sigmas=[9.0, 3.0, 0.0]).timesteps) == 2
    assert len(schedulers.create("ddpm", SD, None, timesteps=[900, 3]).timesteps) == 2
    with pytest.raises(InvalidArgumentError, match="num_inference_steps: expected a whole number"):
        schedulers.create("euler", SD, None)


def test_create_names_unknown_schedulers_and_keys(caplog: pytest.LogCaptureFixture) -> None:
    first = ", ".join(schedulers.NAMES[:10])
    message = re.escape(f"unknown scheduler 'magic'; choose one of {first}, ")
    with pytest.raises(InvalidArgumentError, match=message):
        schedulers.create("magic", SD, 5)
    with pytest.raises(InvalidArgumentError, match=r"did you mean dpm\+\+_2m_karras\?"):
        schedulers.create("dpm++_2m_kerras", SD, 5)
    with caplog.at_level(logging.WARNING):
        schedulers.create("LMSDiscreteScheduler", SD | {"wobble": 3, "_private": 1}, 5)
    assert [r.getMessage() for r in caplog.records] == ["LMSDiscreteScheduler ignores wobble"]


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_scheduler_accepts_the_configuration_of_another(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That of Stable Diffusion 1.5, and that of a solver."""
    for other in (
        {
            "skip_prk_steps": True,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "clip_sample": False,
        },
        {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lambda_min_clipped": -np.inf},
        {"predict_x0": True, "solver_type": "bh2", "disable_corrector": [], "solver_p": None},
    ):
        schedulers.create(name, SD | other, 5)
    assert not caplog.records


@pytest.mark.parametrize("name", [*schedulers.NAMES, *schedulers.ALIASES])
def test_names_belong_to_classes_of_diffusers(name: str) -> None:
    assert schedulers.canonical_name(name.upper()) == name
    class_ = schedulers.class_name(name)
    assert type(schedulers.create(name, PLAIN, 5)).__name__ == class_
    short = schedulers.canonical_name(class_)
    assert short is not None
    assert schedulers.class_name(short) == class_
    assert schedulers.canonical_name("") is None


def test_keys_of_every_configuration_are_known() -> None:
    keys = known_keys()
    for name in schedulers.NAMES:
        scheduler = schedulers.create(name, SD, 5)
        assert scheduler.config.known_keys() <= keys
    assert {"num_train_timesteps", "skip_prk_steps", "solver_p", "flow_shift"} <= keys
    assert "wobble" not in keys
    with pytest.raises(AttributeError, match="no attribute 'MagicScheduler'"):
        schedulers.MagicScheduler  # noqa: B018


def test_formula_becomes_weights() -> None:
    """Euler's method: x + (sigma_next - sigma) * (x - x0) / sigma with x0 = x - sigma * noise."""
    original = SAMPLE - 2.0 * NOISE_PRED
    assert SAMPLE + (1.5 - 2.0) * ((SAMPLE - original) / 2.0) == Combination(0.0, 1.0, -0.5, 0.0)


def test_division_by_zero_is_an_error_of_the_configuration() -> None:
    betas = {"trained_betas": [0.99] * 1000, "prediction_type": "v_prediction"}
    for name in ("ddim", "ddpm", "tcd"):
        with pytest.raises(InvalidArgumentError, match="divides by zero"):
            schedulers.create(name, betas, 10)


def test_sampler_of_ones_own_is_its_formula() -> None:
    """A one-step sampler needs a configuration, a schedule and its formula."""

    class OwnEuler(schedulers.Scheduler):
        def __init__(self) -> None:
            self.config = SigmaConfig.from_mapping(SD)
            timesteps, sigmas = sigma_grid(self.config, training_sigmas(self.config), 10)
            self.sigmas = np.append(sigmas, 0.0)
            super().__init__(timesteps, variance_exploding(self.sigmas, self.config))
            self._weights = self._table(self._formula)

        def _formula(self, i: int) -> Combination:
            sigma, sigma_next = float(self.sigmas[i]), float(self.sigmas[i + 1])
            slope = derivative(self._scaling.originals[i], sigma)
            return SAMPLE + (sigma_next - sigma) * slope

    sample = np.random.default_rng(1).standard_normal((1, 4, 8, 8))
    expected = run(schedulers.create("euler", SD, 10), sample)
    assert np.array_equal(run(OwnEuler(), sample), expected)


@pytest.mark.parametrize("begin", [1, 2, 3, 5, 9, 13, 17])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("lms", {}),
        ("lms", {"use_karras_sigmas": True}),
        ("pndm", {"skip_prk_steps": True}),
        ("pndm", {"skip_prk_steps": False}),
    ],
)
def test_restarted_history_removes_all_noise(name: str, config: dict[str, Any], begin: int) -> None:
    """Row R5: diffusers' weights, which are ours by default, leave some; these leave none."""
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1, 4, 8, 8))
    left = {}
    for restart in (False, True):
        keys = SD | {"set_alpha_to_one": True, **config}
        sampler = schedulers.create(name, keys, 20, restart_history=restart)
        sample = sampler.add_noise(clean, noise, begin)
        for i in range(begin, len(sampler.timesteps)):
            sample = sampler.step(noise, i, sample).prev_sample
        left[restart] = np.abs(sample - clean).max()
    assert left[True] <= CLEAN_SAMPLE_ABS
    assert left[False] > 1000 * CLEAN_SAMPLE_ABS


@pytest.mark.parametrize("name", ["lms", "pndm"])
def test_restarted_history_changes_no_whole_run(name: str) -> None:
    sample = np.random.default_rng(1).standard_normal((1, 4, 8, 8))
    plain, again = (
        run(schedulers.create(name, SD, 12, restart_history=restart), sample)
        for restart in (False, True)
    )
    assert np.array_equal(plain, again)


@pytest.mark.parametrize(
    ("name", "config", "warns"),
    [
        ("lms", {}, True),
        ("lms", {"restart_history": True}, False),
        ("pndm", {"skip_prk_steps": False}, True),
        ("pndm", {"skip_prk_steps": False, "restart_history": True}, False),
        ("pndm", {"skip_prk_steps": True}, False),
        ("euler", {}, False),
    ],
)
def test_noise_that_an_image_keeps_is_warned_about(
    name: str, config: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Row R5."""
    with caplog.at_level(logging.WARNING):
        choice = choose_scheduler(name, SD | config)
        plan_timesteps(choice, 20, ImageShare(0.3), has_image=True)
        plan_timesteps(choice, 20, ImageShare(1.0), has_image=True)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warns
    assert all("leaves noise in an image" in message for message in messages)
