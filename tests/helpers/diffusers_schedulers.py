"""Whole runs of our schedulers compared with those of diffusers, in float32 and in float64."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

from sdexport.runtime import schedulers

SHAPE = (2, 4, 6, 10)


class Wide:
    """A module whose float32 is float64, so that diffusers' tables have full precision."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def in_float64(module: types.ModuleType) -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with contextlib.ExitStack() as stack:
            for name, library in (("np", np), ("torch", torch)):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, Wide(library)))
            yield
    finally:
        torch.set_default_dtype(default)


class Noise:
    """Noise for each call of the UNet; records the calls in which diffusers draws noise."""

    def __init__(self, steps: int, dtype: type) -> None:
        self.values = np.random.default_rng(7).standard_normal((steps, *SHAPE)).astype(dtype)
        self.now = 0
        self.drawn: set[int] = set()
        self._half: tuple[float, torch.Tensor] | None = None

    def randn_tensor(self, shape: Any, **_: Any) -> torch.Tensor:
        self.drawn.add(self.now)
        return torch.from_numpy(self.values[self.now])

    def brownian(self, start: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """Increments of a Brownian motion over [start, goal], scaled to variance 1."""
        fresh = self.randn_tensor(SHAPE)
        a, b = float(start), float(goal)
        if self.now % 2 == 0:
            self._half = (b, fresh * (a - b) ** 0.5)
            return fresh
        assert self._half is not None
        middle, first = self._half
        return (first + fresh * (middle - b) ** 0.5) / (a - b) ** 0.5


def twin_class(name: str) -> Any:
    if name == "dpmsolver_sde":  # imports torchsde, whose noise is replaced below
        sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
        module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
        return module.DPMSolverSDEScheduler
    return getattr(diffusers, schedulers.class_name(name))


class Increments(Noise):
    """Brownian increments drawn from a torch generator, one for each call of the UNet."""

    def __init__(self, generator: torch.Generator, sample: torch.Tensor) -> None:
        self.now, self._generator, self._size = -1, generator, sample.shape
        self._half = None

    def randn_tensor(self, shape: Any, **_: Any) -> torch.Tensor:
        return torch.randn(self._size, generator=self._generator)

    def __call__(self, start: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        self.now += 1
        return self.brownian(start, goal)


@contextlib.contextmanager
def brownian_from(scheduler: str, generator: torch.Generator) -> Iterator[None]:
    """Replace torchsde in diffusers by the increments that this project draws."""
    if scheduler != "dpmsolver_sde":
        yield
        return
    module = sys.modules[twin_class(scheduler).__module__]
    sampler = mock.Mock(side_effect=lambda sample, *_, **__: Increments(generator, sample))
    with mock.patch.object(module, "BrownianTreeNoiseSampler", sampler):
        yield


def _no_timesteps(scheduler: Any, *_: Any) -> None:
    scheduler.sigmas = torch.zeros(1)


def build_twin(
    name: str, config: Mapping[str, Any], steps: int, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """diffusers' scheduler with its timesteps set, and the options that its step takes."""
    in_set = ("timesteps", "sigmas", "original_inference_steps", "strength")
    setting = {key: value for key, value in options.items() if key in in_set}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated algorithms, and roots of negative roundings
        class_ = twin_class(name)
        # constructors of second-order schedulers compute 1000 timesteps that are not used
        with mock.patch.object(class_, "set_timesteps", _no_timesteps):
            theirs = class_.from_config(dict(config))
        if not {"timesteps", "sigmas"} & setting.keys():
            setting["num_inference_steps"] = steps
        theirs.set_timesteps(**setting)
    return theirs, {key: value for key, value in options.items() if key not in in_set}


def stand_in(sample: Any, timestep: float) -> Any:
    """A nonlinear function in place of the UNet, for NumPy arrays and for tensors."""
    sine = torch.sin if isinstance(sample, torch.Tensor) else np.sin
    return 0.7 * sine(2.0 * sample + 0.001 * timestep) + 0.1 * sample


def compare(
    name: str,
    config: Mapping[str, Any],
    steps: int,
    options: Mapping[str, Any] | None = None,
    *,
    begin: int = 0,
    dtype: type = np.float64,
    check: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> float:
    """Largest difference in a whole run, relative to the largest value of the latents.

    Args:
      begin: first step, of num_inference_steps, as in image to image.
      check: called with our and their timesteps.
    """
    options = options or {}
    ours = schedulers.create(name, config, steps, **options)
    genuine = build_twin(name, config, steps, options)[0].timesteps.numpy()
    if check is not None:
        check(ours.timesteps, genuine)
    module = sys.modules[twin_class(name).__module__]
    wide = in_float64(module) if dtype is np.float64 else contextlib.nullcontext()
    noise = Noise(len(genuine), dtype)
    with wide, contextlib.ExitStack() as stack:
        if hasattr(module, "randn_tensor"):
            stack.enter_context(mock.patch.object(module, "randn_tensor", noise.randn_tensor))
        theirs, step_options = build_twin(name, config, steps, options)
        if name == "dpmsolver_sde":
            sampler = mock.Mock(return_value=noise.brownian)
            stack.enter_context(mock.patch.object(module, "BrownianTreeNoiseSampler", sampler))
        begin *= theirs.order
        assert ours.order == theirs.order
        if hasattr(theirs, "set_begin_index"):
            theirs.set_begin_index(begin)
        return _walk(ours, theirs, begin, genuine.astype(float), noise, step_options)


def _walk(
    ours: schedulers.Scheduler,
    theirs: Any,
    begin: int,
    timesteps: np.ndarray,
    noise: Noise,
    step_options: Mapping[str, Any],
) -> float:
    start = np.random.default_rng(1).standard_normal(SHAPE).astype(noise.values.dtype)
    worst = abs(float(theirs.init_noise_sigma) / ours.init_noise_sigma - 1)
    a = torch.from_numpy(start * noise.values.dtype.type(ours.init_noise_sigma))
    b = a.numpy().copy()
    for i in range(begin, len(ours.timesteps)):
        noise.now, timestep = i, theirs.timesteps[i]
        mine = theirs.scale_model_input(a, timestep)
        scaled = ours.scale_model_input(b, i)
        worst = max(worst, deviation(scaled, mine.numpy()))
        before = b.copy()
        result_a = theirs.step(stand_in(mine, timesteps[i]), timestep, a, **step_options)
        takes = ours.takes_noise(i)
        prediction = stand_in(scaled, timesteps[i])
        result_b = ours.step(prediction, i, b, noise.values[i] if takes else None)
        assert takes == (i in noise.drawn), f"step {i}: diffusers draws noise: {not takes}"
        assert np.array_equal(before, b), "the sample was changed"
        assert result_b.prev_sample.dtype == result_b.pred_original_sample.dtype == b.dtype
        a, b = result_a.prev_sample, result_b.prev_sample
        worst = max(worst, deviation(b, a.numpy()))
        clean = getattr(result_a, "pred_original_sample", getattr(result_a, "denoised", None))
        if clean is not None:
            worst = max(worst, deviation(result_b.pred_original_sample, clean.numpy()))
    return worst


def deviation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference relative to the largest value; infinite if ours is not finite."""
    if not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
