"""Whole runs of our schedulers compared with the samplers of k-diffusion, in float64."""

from __future__ import annotations

import functools
import importlib.util
import random
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from sdexport.runtime import schedulers
from sdexport.runtime.schedulers.scheduler_config import SchedulerConfig
from sdexport.runtime.schedulers.sigma_schedules import SCHEDULES, training_sigmas
from tests.helpers.diffusers_schedulers import SHAPE, deviation, stand_in
from tests.helpers.scheduler_cases import BETAS, PREDICTIONS, SPACINGS
from tests.tolerances import TIMESTEP_ABS

SAMPLERS = {
    "dpm++_2s_a": "sample_dpmpp_2s_ancestral",
    "dpm++_3m_sde": "sample_dpmpp_3m_sde",
    "euler_inverse": "sample_euler",
}
STOCHASTIC = {"eta": (0.0, 0.4, 1.0), "s_noise": (1.0, 1.1)}
RUNS = 300


@functools.cache
def sampling() -> Any:
    """The module k_diffusion.sampling alone: the package imports libraries for training."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.origin is None or importlib.util.find_spec("torchsde") is None:
        pytest.skip("k-diffusion is not installed")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = []
    utils.append_dims = lambda x, count: x[(...,) + (None,) * (count - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    path = Path(spec.origin).with_name("sampling.py")
    alone = importlib.util.spec_from_file_location("k_diffusion.sampling", path)
    assert alone is not None
    assert alone.loader is not None
    module = importlib.util.module_from_spec(alone)
    with mock.patch.dict(sys.modules, {"k_diffusion": package, "k_diffusion.utils": utils}):
        alone.loader.exec_module(module)
    return module


class Model:
    """A stand-in for the UNet with k-diffusion's scaling, and the noise of each of its calls."""

    def __init__(self, config: Mapping[str, Any], timesteps: np.ndarray) -> None:
        every = training_sigmas(SchedulerConfig.from_mapping(config))
        self._logs = np.log(every)
        self._kind = config.get("prediction_type", "epsilon")
        self.noise = np.random.default_rng(7).standard_normal((len(timesteps), *SHAPE))
        self._timesteps = timesteps
        self._calls = 0

    def __call__(self, x: Any, sigma: Any) -> Any:
        """The clean latents for latents x of the level sigma, (batch,)."""
        s = float(sigma[0])
        timestep = float(self._timesteps[self._calls])
        theirs = np.interp(np.log(s), self._logs, np.arange(len(self._logs)))
        # diffusers' timesteps, which ours are, are interpolated in another way
        assert abs(timestep - theirs) <= TIMESTEP_ABS
        self._calls += 1
        scale = 1 / (s**2 + 1) ** 0.5
        prediction = stand_in(x * scale, timestep)
        if self._kind == "epsilon":
            return x - s * prediction
        if self._kind == "sample":
            return prediction
        return x * scale**2 - s * scale * prediction

    def noise_sampler(self, *_: Any) -> Any:
        """The noise of the last call, whatever the levels."""
        return torch.from_numpy(self.noise[self._calls - 1])


def compare(
    name: str,
    sampler: str,
    config: Mapping[str, Any],
    steps: int,
    options: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> float:
    """Largest difference of a run's end, relative to the largest value; timesteps are asserted.

    Args:
      sampler: function of k-diffusion; it gets the levels of our scheduler.
      arguments: of that function.
    """
    options = options or {}
    ours = schedulers.create(name, config, steps, **options)
    levels: np.ndarray = ours.sigmas  # type: ignore[attr-defined]
    whole = [*levels[:: ours.order], *([0.0] if ours.order == 2 else [])]
    model = Model(config, ours.timesteps)
    start = np.random.default_rng(1).standard_normal(SHAPE) * ours.init_noise_sigma
    function = getattr(sampling(), sampler)
    if any(map(ours.takes_noise, range(len(ours.timesteps)))):
        arguments["noise_sampler"] = model.noise_sampler
    theirs = function(
        model, torch.from_numpy(start), torch.tensor(whole), disable=True, **arguments
    ).numpy()
    sample = start
    for i, timestep in enumerate(ours.timesteps):
        prediction = stand_in(ours.scale_model_input(sample, i), float(timestep))
        noise = model.noise[i] if ours.takes_noise(i) else None
        sample = ours.step(prediction, i, sample, noise).prev_sample
    return deviation(sample, theirs)


def random_case(rng: random.Random, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    config: dict[str, Any] = BETAS | {
        "prediction_type": rng.choice(PREDICTIONS),
        "timestep_spacing": rng.choice(SPACINGS),
        "steps_offset": rng.choice((0, 1)),
    }
    if rng.random() < 0.2:
        config["beta_schedule"] = "linear"
    names = [name for name in SCHEDULES if steps <= 10 or name != "sd_turbo"]
    key = rng.choice(("schedule", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))
    config[key] = rng.choice(names) if key == "schedule" else True
    return config, {key: rng.choice(values) for key, values in STOCHASTIC.items()}


def random_run(name: str, seed: int) -> float:
    """The largest difference in a run with random settings."""
    rng = random.Random(seed)
    steps = rng.randint(2, 60)  # k-diffusion fails with one step
    config, options = random_case(rng, steps)
    if not schedulers.create(name, config, steps).takes_noise(1):
        return compare(name, SAMPLERS[name], config, steps)
    ours = {"noise_share": options["eta"], "s_noise": options["s_noise"]}
    return compare(name, SAMPLERS[name], config, steps, ours, **options)
