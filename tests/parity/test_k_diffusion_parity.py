"""Samplers that diffusers does not have, against k-diffusion's own functions."""

from __future__ import annotations

import numpy as np
import pytest

from sdexport.runtime import schedulers
from tests.helpers.k_diffusion_samplers import RUNS, SAMPLERS, random_run, sampling
from tests.helpers.scheduler_cases import BETAS
from tests.tolerances import K_DIFFUSION_LEVELS_REL, SCHEDULER_FLOAT64_REL


def check(name: str, seed: int) -> None:
    worst = random_run(name, seed)
    assert worst <= SCHEDULER_FLOAT64_REL, f"seed {seed}: {worst:.1e}"


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("seed", range(12))
def test_random_runs_equal_k_diffusion(name: str, seed: int) -> None:
    check(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_many_random_runs_equal_k_diffusion(name: str) -> None:
    for seed in range(12, RUNS):
        check(name, seed)


@pytest.mark.parametrize("steps", [2, 3, 10, 25])
def test_levels_equal_k_diffusion(steps: int) -> None:
    every = schedulers.create("euler", BETAS, 1000).sigmas  # type: ignore[attr-defined]
    low, high = float(every[-2]), float(every[0])
    for schedule, function in {
        "karras": "get_sigmas_karras",
        "exponential": "get_sigmas_exponential",
        "polyexponential": "get_sigmas_polyexponential",
    }.items():
        theirs = getattr(sampling(), function)(steps, low, high).numpy()
        ours = schedulers.create("euler", BETAS, steps, schedule=schedule).sigmas  # type: ignore[attr-defined]
        np.testing.assert_allclose(ours, theirs, rtol=K_DIFFUSION_LEVELS_REL)
