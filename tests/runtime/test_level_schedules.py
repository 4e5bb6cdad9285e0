"""Schedules of noise levels against SciPy, diffusers, and their definitions written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import schedulers
from sdexport.runtime.schedulers.beta_distribution import beta_quantiles
from sdexport.runtime.schedulers.create import allowed_schedules
from sdexport.runtime.schedulers.level_schedules import FOR_BETAS, LEVEL_SCHEDULES
from sdexport.runtime.schedulers.scheduler_config import SchedulerConfig
from sdexport.runtime.schedulers.sigma_schedules import SCHEDULES, training_sigmas
from tests.helpers.scheduler_cases import INVERSE
from tests.tolerances import BETA_QUANTILE_ABS, CLEAN_SAMPLE_ABS, SCHEDULER_FLOAT64_REL

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EVERY = training_sigmas(SchedulerConfig.from_mapping(SD))
STEPS = (1, 2, 3, 7, 10, 20, 25, 30, 50, 60)
TAKES_SCHEDULE = [n for n in schedulers.NAMES if "simple" in allowed_schedules(n)]


def equal(name: str, steps: int, expected: Any) -> None:
    levels = LEVEL_SCHEDULES[name](EVERY, steps)
    np.testing.assert_allclose(levels, expected, rtol=SCHEDULER_FLOAT64_REL, atol=0)


def level(timestep: float) -> float:
    """Between two training levels, linear in the logarithm."""
    low = min(int(timestep), len(EVERY) - 2)
    share = timestep - low
    return float(EVERY[low] ** (1 - share) * EVERY[low + 1] ** share)


@pytest.mark.parametrize("steps", STEPS)
def test_levels_of_even_timesteps(steps: int) -> None:
    equal("normal", steps, [level(999 * (1 - k / max(steps - 1, 1))) for k in range(steps)])
    equal("sgm_uniform", steps, [level(999 * (1 - k / steps)) for k in range(steps)])
    equal("simple", steps, [EVERY[999 - int(k * 1000 / steps)] for k in range(steps)])
    every_so_many = list(range(1, 1000, 1000 // steps))
    equal("ddim_uniform", steps, [EVERY[t] for t in reversed(every_so_many)])
    if steps <= 10:
        equal("sd_turbo", steps, [EVERY[999 - 100 * k] for k in range(steps)])


@pytest.mark.parametrize("steps", STEPS)
def test_levels_of_formulas(steps: int) -> None:
    low, high = float(EVERY[0]), float(EVERY[-1])
    angles = [math.atan(high), math.atan(low)]
    last = max(steps - 1, 1)
    arcs = [angles[0] + k / last * (angles[1] - angles[0]) for k in range(steps)]
    equal("kl_optimal", steps, [math.tan(arc) for arc in arcs])
    even = steps // 2
    gone = [0.025 * k / even for k in range(even)]
    if even:  # a parabola that continues the line, and reaches 1 after the last step
        rest, slope = steps - even, 0.025 / even
        curve = (1 - 0.025 - slope * rest) / rest**2
        gone += [0.025 + slope * k + curve * k**2 for k in range(rest)]
    equal("linear_quadratic", steps, [high * (1 - share) for share in gone or [0.0]])


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20, 25, 60])
@pytest.mark.parametrize("name", ["align_your_steps", "align_your_steps_xl"])
def test_align_your_steps_is_the_published_table(name: str, steps: int) -> None:
    utils = pytest.importorskip("diffusers.schedulers.scheduling_utils")
    kind = "StableDiffusionXLSigmas" if name.endswith("xl") else "StableDiffusionSigmas"
    table = [*utils.AysSchedules[kind][:-1], 0.029]
    if steps == 10:
        equal(name, steps, table[:-1])
    shares = [10 * k / steps for k in range(steps)]
    logarithms = np.interp(shares, range(11), np.log(table))
    equal(name, steps, np.exp(logarithms))


@pytest.mark.parametrize(
    "shape", [(0.6, 0.6), (0.5, 0.7), (0.1, 3.0), (5.0, 0.3), (10.0, 10.0), (1.0, 1.0), (2.0, 3.0)]
)
def test_beta_quantiles_equal_scipy(shape: tuple[float, float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    grids = [np.linspace(0, 1, n) for n in (1, 2, 3, 10, 37, 1001)]
    tails = [np.geomspace(1e-12, 0.5, 50), 1 - np.geomspace(1e-12, 0.5, 50)]
    for probabilities in (*grids, *tails):
        found = beta_quantiles(probabilities, *shape)
        expected = stats.beta.ppf(probabilities, *shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=BETA_QUANTILE_ABS)


def test_beta_timesteps_equal_scipy() -> None:
    """Whole timesteps, for every number of steps: none rounds the other way."""
    stats = pytest.importorskip("scipy.stats")
    for steps in range(1, 200):
        quantiles = stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
        timesteps = sorted(set(np.rint(quantiles * 999).astype(int)), reverse=True)
        equal("beta_timesteps", steps, EVERY[timesteps])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", TAKES_SCHEDULE)
def test_every_sampler_with_every_schedule(name: str, schedule: str) -> None:
    """Levels fall, and a perfect model gives the clean latents back."""
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1, 4, 4, 4))
    is_edm = name.startswith("edm_")
    if is_edm and schedule in FOR_BETAS:
        with pytest.raises(InvalidArgumentError, match=f"has no schedule '{schedule}'"):
            schedulers.create(name, {}, 10, schedule=schedule)
        return
    config = {} if is_edm else SD
    sampler = schedulers.create(name, config, 10, schedule=schedule)
    same = schedulers.create(name, config | {"schedule": schedule}, 10)
    np.testing.assert_array_equal(sampler.timesteps, same.timesteps)
    steps = len(sampler.timesteps)
    sample = sampler.add_noise(clean, noise, 0)
    for i in range(steps):
        w = sampler.original_weights(i)
        prediction = (clean - w.sample * sample) / w.noise_pred
        fresh = np.zeros_like(sample) if sampler.takes_noise(i) else None
        sample = sampler.step(prediction, i, sample, fresh).prev_sample
    if name not in ("deis", "sasolver", *INVERSE):  # which do not end at zero noise
        np.testing.assert_allclose(sample, clean, rtol=0, atol=CLEAN_SAMPLE_ABS)


@pytest.mark.parametrize(
    ("name", "config", "options", "message"),
    [
        (
            "ddim",
            {},
            {"schedule": "simple"},
            "ddim has no schedule 'simple'; choose one",
        ),
        ("euler", {}, {"schedule": "even"}, "unknown schedule 'even'; choose one of timesteps"),
        ("euler", {}, {"schedule": 3}, "schedule must be a name, got 3"),
        ("euler", {}, {"schedule": "simple", "timesteps": [9, 4]}, "give one or the other"),
        ("euler", {}, {"schedule": "simple", "sigmas": [9, 4]}, "exclude each other"),
        ("edm_euler", {}, {"schedule": "simple", "sigmas": [9, 4, 0]}, "exclude each other"),
        ("euler", {"sigma_min": 0.1}, {"schedule": "simple"}, "has no sigma_min"),
        ("euler", {"interpolation_type": "log_linear"}, {"schedule": "simple"}, "log_linear"),
        (
            "lms",
            {"num_train_timesteps": 5},
            {"schedule": "sd_turbo"},
            "num_inference_steps must be",
        ),
        ("lms", {}, {"schedule": "sd_turbo"}, "schedule 'sd_turbo' has 1 to 10 steps, got 20"),
    ],
)
def test_wrong_uses_are_named(
    name: str, config: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    steps = 2 if "timesteps" in options or "sigmas" in options else 20
    with pytest.raises(InvalidArgumentError, match=message):
        schedulers.create(name, config, steps, **options)


def test_schedule_comes_before_the_keys_of_diffusers() -> None:
    karras = {**SD, "use_karras_sigmas": True}
    for name in ("euler", "dpmsolver++", "dpm2"):
        plain = schedulers.create(name, SD, 8).timesteps
        assert not np.array_equal(schedulers.create(name, karras, 8).timesteps, plain)
        again = schedulers.create(name, karras, 8, schedule="timesteps").timesteps
        np.testing.assert_array_equal(again, plain)
        by_name = schedulers.create(name, SD, 8, schedule="karras").timesteps
        np.testing.assert_array_equal(by_name, schedulers.create(name, karras, 8).timesteps)


def test_number_of_steps_is_that_of_the_schedule() -> None:
    """Row N2: these two give more or fewer steps, as in the programs that they come from."""
    assert len(schedulers.create("euler", SD, 30, schedule="ddim_uniform").timesteps) == 31
    assert len(schedulers.create("euler", SD, 900, schedule="beta_timesteps").timesteps) < 900
