"""Guidance: its formula, its interval, and guidance functions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Package, Pipeline, TorchGenerator
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.denoise import denoise
from sdexport.runtime.guidance import Guidance, GuidanceState
from sdexport.runtime.initial_latents import InitialLatents
from sdexport.runtime.schedulers import NAMES, create
from tests.helpers.counting_session import Counting
from tests.helpers.scheduler_cases import INVERSE, OTHER_MODELS
from tests.tolerances import (
    BATCH_LATENTS_ABS,
    CLEAN_REL,
    RESCALE_REL,
    SAME_LATENTS_ABS,
    assert_close,
)

FAST: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "ddim", "seed": 0}


@pytest.fixture
def counted(package: Path, pipe: Pipeline) -> tuple[Pipeline, Counting]:
    unet = Counting(pipe.session("unet"))
    sessions: dict[str, Any] = {n: pipe.session(n) for n in ("text_encoder", "vae_decoder")}
    return Pipeline(Package.load(package, verify=False), sessions=sessions | {"unet": unet}), unet


def prediction(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (6, 4, 1, 1), (4, 4, 5, 9)])
def test_combine_equals_torch(rescale: float, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
    )
    noise_pred = prediction(*shape)
    kept = noise_pred.copy()
    uncond, text = torch.from_numpy(noise_pred).chunk(2)
    guided = uncond + 9.5 * (text - uncond)
    expected = diffusers.rescale_noise_cfg(guided, text, guidance_rescale=rescale).numpy()
    actual = Guidance(9.5, rescale).combine(noise_pred)
    assert actual.dtype == np.float32
    assert_close(actual, expected, rel=RESCALE_REL)
    np.testing.assert_array_equal(noise_pred, kept)


def test_combine_of_a_flat_prediction_is_finite() -> None:
    flat = np.zeros((2, 4, 8, 8), np.float32)
    assert not Guidance(7.5, 0.7).combine(flat).any()


@pytest.mark.parametrize(
    ("interval", "rows"),
    [
        ((0.0, 1.0), [4, 4, 4, 4]),
        ((0.25, 0.75), [2, 4, 4, 2]),
        ((0.0, 0.5), [4, 4, 2, 2]),
        ((0.9, 1.0), [2, 2, 2, 2]),
        ([0.5, 1], [2, 2, 4, 4]),
    ],
)
def test_interval_halves_the_batch_outside(
    counted: tuple[Pipeline, Counting], interval: tuple[float, float], rows: list[int]
) -> None:
    pipeline, unet = counted
    pipeline(["a red circle", "a star"], guidance_interval=interval, **FAST | {"seed": [0, 1]})
    assert unet.batches == rows


def test_interval_without_any_step_is_no_guidance(pipe: Pipeline) -> None:
    """Outside of the interval the prediction is the one for the prompt."""
    never = pipe("a red circle", guidance_interval=(0.9, 1.0), **FAST)
    without = pipe("a red circle", guidance_scale=1.0, **FAST)
    np.testing.assert_allclose(never.latents, without.latents, rtol=0, atol=SAME_LATENTS_ABS)


def test_interval_with_max_batch(package: Path, pipe: Pipeline) -> None:
    sessions: dict[str, Any] = {n: pipe.session(n) for n in ("text_encoder", "vae_decoder")}
    unet = Counting(pipe.session("unet"))
    small = Pipeline(
        Package.load(package, verify=False), sessions=sessions | {"unet": unet}, max_batch=2
    )
    arguments = FAST | {"seed": [1, 2, 3], "guidance_interval": (0.25, 0.75)}
    prompts = ["a red circle", "a star", "a blue square"]
    few, all_ = small(prompts, **arguments), pipe(prompts, **arguments)
    assert unet.batches == [2, 1, 4, 2, 4, 2, 2, 1]
    np.testing.assert_allclose(few.latents, all_.latents, rtol=0, atol=BATCH_LATENTS_ABS)


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ((0.5, 0.5), "must have start < end"),
        ((0.8, 0.2), "must have start < end"),
        ((-0.1, 1.0), "start must be 0 to 1, got -0.1"),
        ((0.0, 1.1), "end must be 0 to 1, got 1.1"),
        ((0.0, math.nan), "end must be 0 to 1"),
        ((0.0,), r"must be \(start, end\)"),
        ("ab", r"must be \(start, end\)"),
        (0.5, r"must be \(start, end\)"),
        (None, r"must be \(start, end\)"),
        (("a", "b"), "start must be 0 to 1"),
    ],
)
def test_interval_rejected(interval: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"guidance_interval {message}"):
        Guidance(interval=interval)


@pytest.mark.parametrize(
    ("interval", "begin", "evaluated"),
    [
        (None, 0, [0, 1, 2, 3, 4, 5]),
        ((0.0, 1.0), 0, [0, 2, 4]),
        ((0.5, 1.0), 0, [0, 1, 2, 4]),
        ((0.0, 0.5), 0, [0, 2, 3, 4, 5]),
        ((0.4, 0.5), 0, [0, 1, 2, 3, 4, 5]),
        ([0, 1], 3, [3, 5]),
    ],
)
def test_cache_interval_takes_every_second_prediction(
    counted: tuple[Pipeline, Counting],
    interval: tuple[float, float] | None,
    begin: int,
    evaluated: list[int],
) -> None:
    pipeline, unet = counted
    scheduler = create("ddim", {}, 6)
    seen: list[float] = []
    run = unet.run
    unet.run = lambda feeds: seen.append(feeds["timestep"].item()) or run(feeds)  # type: ignore[method-assign]
    start = InitialLatents(TorchGenerator(0).randn((1, 4, 16, 16)), first_step=begin)
    loop = denoise(
        unet,
        start,
        pipeline.encode(["a red circle"]),
        scheduler,
        guidance=Guidance(1.0),
        cache_interval=interval,
    )
    assert len(list(loop)) == 6 - begin
    assert seen == [float(scheduler.timesteps[i]) for i in evaluated]


def test_cache_interval_is_the_loop_with_repeated_predictions(pipe: Pipeline) -> None:
    embeds, noise = pipe.encode(["a star"]), TorchGenerator(1).randn((1, 4, 16, 16))
    scheduler, latents = pipe.scheduler("euler", 4), noise
    latents = noise * scheduler.init_noise_sigma
    for i, timestep in enumerate(scheduler.timesteps):
        if i != 2:
            feeds = {
                "sample": scheduler.scale_model_input(latents, i),
                "timestep": np.full(1, timestep, np.float32),
                "encoder_hidden_states": embeds,
            }
            noise_pred = pipe.session("unet").run(feeds)["out_sample"]
        latents = scheduler.step(noise_pred, i, latents).prev_sample
    found = list(
        pipe.denoise(noise, embeds, scheduler, guidance_scale=1.0, cache_interval=(0.5, 0.75))
    )
    np.testing.assert_array_equal(found[-1].latents, latents)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_no_unconditional_pass_at_one(counted: tuple[Pipeline, Counting], scale: float) -> None:
    pipeline, unet = counted
    pipeline("a red circle", "blurry", guidance_scale=scale, guidance_rescale=0.5, **FAST)
    assert unet.batches == [1] * 4


def test_function_sees_the_step_and_may_change_nothing(pipe: Pipeline) -> None:
    states: list[GuidanceState] = []

    def look(state: GuidanceState) -> None:
        states.append(state)

    plain = pipe("a star", **FAST)
    seen = pipe("a star", guidance_function=look, **FAST)
    assert plain.latents.tobytes() == seen.latents.tobytes()
    assert [s.index for s in states] == [0, 1, 2, 3]
    assert [s.timestep for s in states] == list(pipe.scheduler("ddim", 4).timesteps)
    sigmas = [s.sigma for s in states]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] > 0


def test_function_may_overwrite_its_arguments(pipe: Pipeline) -> None:
    def overwrite(state: GuidanceState) -> None:
        for array in (state.latents, state.noise_pred, state.pred_original_sample):
            array[:] = 0

    plain = pipe("a star", **FAST)
    assert pipe("a star", guidance_function=overwrite, **FAST).latents.tobytes() == (
        plain.latents.tobytes()
    )


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("lcm", "tcd", *INVERSE)])
def test_function_gets_the_clean_latents_of_every_sampler(
    package: Path, pipe: Pipeline, name: str
) -> None:
    """The same that the sampler's step reports, whatever its parametrisation.

    Except for LCM and TCD, which mix theirs with a boundary condition.
    """
    states: list[GuidanceState] = []
    originals: list[np.ndarray] = []
    if name in OTHER_MODELS:
        loaded = replace(Package.load(package, verify=False), scheduler_config={})
        parts = ("text_encoder", "unet", "vae_decoder")
        pipe = Pipeline(loaded, sessions={part: pipe.session(part) for part in parts})

    pipe(
        "a star",
        num_inference_steps=4,
        scheduler=name,
        seed=0,
        guidance_function=states.append,
        on_step=lambda step: originals.append(step.pred_original_sample),
    )
    first, reported = states[0].pred_original_sample, originals[0]
    assert_close(first, reported, rel=CLEAN_REL)


def test_function_changes_the_image(pipe: Pipeline) -> None:
    def darker(state: GuidanceState) -> np.ndarray:
        return state.latents - 0.2 * state.pred_original_sample

    plain = pipe("a star", **FAST)
    guided = pipe("a star", guidance_function=darker, **FAST)
    assert np.abs(plain.latents - guided.latents).mean() > 0.05

    def to_float64(state: GuidanceState) -> np.ndarray:
        return darker(state).astype(np.float64)

    again = pipe("a star", guidance_function=to_float64, **FAST)
    assert again.latents.dtype == np.float32
    np.testing.assert_allclose(again.latents, guided.latents, rtol=0, atol=SAME_LATENTS_ABS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((1, 4, 8, 8), np.float32), r"expected latents float32 \(1, 4, 16, 16\)"),
        (np.float32(1), "expected latents"),
        ("latents", "expected latents"),
        (np.full((1, 4, 16, 16), 1j), "expected latents"),
        (np.full((1, 4, 16, 16), np.nan, np.float32), "NaN or infinity at step 0"),
        (np.full((1, 4, 16, 16), np.inf), "NaN or infinity at step 0"),
    ],
)
def test_function_that_returns_something_else(pipe: Pipeline, value: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"guidance_function: {message}"):
        pipe("a star", guidance_function=lambda state: value, **FAST)


def test_function_that_raises_leaves_the_pipeline_usable(pipe: Pipeline) -> None:
    def fail(state: GuidanceState) -> None:
        raise RuntimeError(f"step {state.index}")

    before = pipe("a star", **FAST).latents
    with pytest.raises(RuntimeError, match="step 0"):
        pipe("a star", guidance_function=fail, **FAST)
    np.testing.assert_array_equal(pipe("a star", **FAST).latents, before)


def test_function_without_any_signal_in_the_latents(pipe: Pipeline) -> None:
    """Zero terminal SNR: the noise level of the first step is infinite."""
    keys = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    config = {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing", **keys}
    sampler = create("ddim", config, 3)
    states: list[GuidanceState] = []
    list(
        denoise(
            pipe.session("unet"),
            InitialLatents(TorchGenerator(0).randn((1, 4, 16, 16))),
            pipe.encode(["a star"]),
            sampler,
            guidance=Guidance(1.0, function=states.append),
        )
    )
    assert states[0].sigma == math.inf
    assert np.isfinite(states[0].pred_original_sample).all()
    assert all(math.isfinite(s.sigma) for s in states[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -1}, "guidance_scale must be 0 or more"),
        ({"scale": "7"}, "guidance_scale must be 0 or more, got '7'"),
        ({"scale": True}, "guidance_scale must be 0 or more, got True"),
        ({"scale": 1e30}, "guidance_scale must be 10000 or less"),
        ({"scale": np.array([7.5])}, "guidance_scale must be 0 or more, got an array"),
        ({"rescale": 1.5}, "guidance_rescale must be 0 to 1, got 1.5"),
        ({"rescale": math.nan}, "guidance_rescale must be 0 to 1"),
        ({"function": 5}, "guidance_function must be a function, got 5"),
    ],
)
def test_guidance_rejects_wrong_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Guidance(**arguments)
