"""Schedulers against diffusers' own classes, as whole trajectories."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from sdexport.runtime import schedulers
from sdexport.runtime.schedulers.create import known_keys
from tests.helpers.diffusers_schedulers import build_twin, compare, deviation, twin_class
from tests.helpers.scheduler_cases import BETAS, IN_DIFFUSERS, OPTIONS, OTHER_MODELS, grid, steps_of
from tests.tolerances import (
    ADD_NOISE_REL,
    SCHEDULER_FLOAT32_REL,
    SCHEDULER_FLOAT32_STEEP_REL,
    SCHEDULER_FLOAT64_REL,
    TIMESTEP_ABS,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:algorithm_type:FutureWarning",
    "ignore:invalid value:RuntimeWarning",
    "ignore:__array_wrap__:DeprecationWarning",  # DEIS takes NumPy's logarithm of a tensor
)
BOUNDS = {np.float64: SCHEDULER_FLOAT64_REL, np.float32: SCHEDULER_FLOAT32_REL}
Config = dict[str, Any]


def case_id(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    keys = [str(v)[:24] for k, v in value.items() if k not in BETAS or v != BETAS[k]]
    return "-".join(keys) or "plain"


def cases(*, full: bool) -> list[tuple[str, Config, Config]]:
    return [(name, *case) for name in IN_DIFFUSERS for case in grid(name, full=full)]


def same_timesteps(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Whole ones exactly; fractions to TIMESTEP_ABS, those of diffusers being float32."""
    assert ours.shape == theirs.shape
    if theirs.dtype.kind == "i":
        assert np.array_equal(ours, theirs)
    else:
        assert np.abs(ours - theirs).max() <= TIMESTEP_ABS


def check(name: str, config: Config, options: Config, steps: int, **where: Any) -> None:
    for dtype, bound in BOUNDS.items():
        steep = config.get("beta_schedule") in ("squaredcos_cap_v2", "exp")
        steep |= name == "deis" and config.get("use_beta_sigmas", False)
        steep |= max(config.get("predictor_order", 0), config.get("corrector_order", 0)) > 2
        if steep and dtype is np.float32:
            bound = SCHEDULER_FLOAT32_STEEP_REL
        worst = compare(name, config, steps, options, dtype=dtype, check=same_timesteps, **where)
        assert worst <= bound, f"{steps} steps in {dtype.__name__}: {worst:.3e} > {bound:.0e}"


@pytest.mark.parametrize(("name", "config", "options"), cases(full=False), ids=case_id)
def test_trajectory_equals_diffusers(name: str, config: Config, options: Config) -> None:
    for steps in steps_of(config, options):
        check(name, config, options, steps)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config", "options"), cases(full=True), ids=case_id)
def test_trajectory_equals_diffusers_everywhere(name: str, config: Config, options: Config) -> None:
    for steps in steps_of(config, options, (1, 2, 3, 4, 7, 10, 14, 15, 20, 25, 30, 50)):
        check(name, config, options, steps)


@pytest.mark.parametrize("name", IN_DIFFUSERS)
@pytest.mark.parametrize("begin", [1, 2, 5, 9])
def test_later_start_equals_diffusers(name: str, begin: int) -> None:
    """Image to image begins within the schedule."""
    for config, options in OPTIONS[name]:
        if options.keys() & {"timesteps", "sigmas"}:
            continue
        keys = {"timestep_spacing": "leading"}
        if "rescale_betas_zero_snr" in config:
            keys["prediction_type"] = "v_prediction"
        check(name, BETAS | keys | config, options, 10, begin=begin)


@pytest.mark.parametrize("name", IN_DIFFUSERS)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [7, 13, 37, 49])
def test_odd_numbers_of_steps_equal_diffusers(name: str, spacing: str, steps: int) -> None:
    if (name, spacing) == ("ddim_inverse", "linspace"):
        return
    config = BETAS | {"timestep_spacing": spacing}
    options = {"eta": 0.5} if name == "tcd" else {}
    check(name, config, options, steps)


@pytest.mark.parametrize("name", [n for n in IN_DIFFUSERS if n not in OTHER_MODELS])
def test_trailing_timesteps_equal_diffusers_for_every_number_of_steps(name: str) -> None:
    """diffusers ends with a timestep of -1 too many for some numbers; ours never does."""
    config = BETAS | {"timestep_spacing": "trailing", "original_inference_steps": 100}
    for steps in (61, *range(4, 100, 5)):
        ours = schedulers.create(name, config, steps)
        theirs = build_twin(name, config, steps, {})[0].timesteps.numpy()
        assert (ours.timesteps >= 0).all()
        if theirs.min() >= 0:
            same_timesteps(ours.timesteps, theirs)


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_every_key_of_diffusers_is_known(name: str) -> None:
    parameters = inspect.signature(twin_class(name).__init__).parameters
    assert parameters.keys() - {"self", "kwargs"} <= known_keys()


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_add_noise_equals_diffusers(name: str) -> None:
    config = BETAS | {"timestep_spacing": "leading", "steps_offset": 1}
    ours = schedulers.create(name, config, 20)
    rng = np.random.default_rng(2)
    original, noise = rng.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
    for i in (0, 8, 18):
        theirs, _ = build_twin(name, config, 20, {})
        if not hasattr(theirs, "add_noise"):
            return
        if hasattr(theirs, "set_begin_index"):
            theirs.set_begin_index(i)
        timestep = theirs.timesteps[i : i + 1]
        expected = theirs.add_noise(torch.from_numpy(original), torch.from_numpy(noise), timestep)
        added = ours.add_noise(original, noise, i)
        assert added.dtype == np.float32
        assert deviation(added, expected.numpy()) <= ADD_NOISE_REL


def test_tcd_rounds_as_diffusers_at_its_default_eta() -> None:
    for steps in (4, 8, 17, 50):
        worst = compare("tcd", BETAS, steps, {"eta": 0.3}, dtype=np.float32)
        assert worst <= SCHEDULER_FLOAT32_REL
