"""Schedulers that lead from clean latents to noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport import Pipeline
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import schedulers
from tests.helpers.scheduler_cases import INVERSE
from tests.tolerances import CLEAN_SAMPLE_ABS

PLAIN = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAIN |= {"clip_sample": False}
FEW: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 1.0, "seed": 0}


@pytest.mark.parametrize("name", INVERSE)
@pytest.mark.parametrize("steps", [2, 10, 60])
def test_true_noise_leads_to_that_noise(name: str, steps: int) -> None:
    """With the same noise predicted everywhere, the end is the noised input at the last level."""
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1, 4, 8, 8))
    sampler = schedulers.create(name, PLAIN, steps)
    assert sampler.init_noise_sigma == 1
    assert np.all(np.diff(sampler.timesteps) >= 0)
    sample = sampler.add_noise(clean, noise, 0)
    for i in range(len(sampler.timesteps)):
        sample = sampler.step(noise, i, sample).prev_sample
    residual = sample - noise * (sample * noise).sum() / (noise**2).sum()
    again = clean - noise * (clean * noise).sum() / (noise**2).sum()
    scale = (residual * again).sum() / (again**2).sum()
    np.testing.assert_allclose(residual, scale * again, rtol=0, atol=CLEAN_SAMPLE_ABS)
    assert (sample * noise).sum() / (noise**2).sum() > 0.5


@pytest.mark.parametrize(("name", "back"), [("ddim_inverse", "ddim"), ("euler_inverse", "euler")])
def test_noise_of_an_image_gives_the_image_back(pipe: Pipeline, name: str, back: str) -> None:
    few = FEW | {"num_inference_steps": 30}
    image = pipe("a star", scheduler=back, **few).latents
    noise = pipe("a star", image=image, scheduler=name, strength=1.0, **few).latents
    highest = pipe.scheduler(back, 30).init_noise_sigma
    again = pipe("a star", latents=noise / np.float32(highest), scheduler=back, **few).latents
    other = pipe("a star", scheduler=back, **few | {"seed": 1}).latents
    left, apart = np.abs(again - image).mean(), np.abs(other - image).mean()
    assert left < apart / 2


def test_strength_is_how_far_towards_noise(pipe: Pipeline) -> None:
    image = Image.new("RGB", (64, 64), "teal")
    steps: list[int] = []
    pipe(
        "a star",
        image=image,
        scheduler="ddim_inverse",
        strength=0.5,
        on_step=lambda step: steps.append(step.index),
        **FEW,
    )
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", INVERSE)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "goes from an image to noise; give an image, or its latents"),
        ({"image": "", "mask_image": ""}, "goes from an image to noise; it takes no mask_image"),
        ({"image": "", "denoising_start": 0.5}, "takes no denoising_start"),
    ],
)
def test_wrong_uses_are_named(
    pipe: Pipeline, name: str, arguments: dict[str, Any], message: str
) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    given = {key: picture if value == "" else value for key, value in arguments.items()}
    with pytest.raises(InvalidArgumentError, match=message):
        pipe("a star", scheduler=name, **given, **FEW)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("ddim_inverse", {"timestep_spacing": "linspace"}, "choose one of leading, trailing"),
        ("dpmsolver++_inverse", {"algorithm_type": "sde-dpmsolver++"}, "unknown algorithm_type"),
        ("dpmsolver++_inverse", {"lambda_min_clipped": 99.0}, "leaves no timestep"),
        ("dpmsolver++_inverse", {"steps_offset": 999}, "leads to timestep"),
        ("ddim_inverse", {"num_train_timesteps": 3}, "num_inference_steps must be 1 to 3"),
    ],
)
def test_wrong_configurations_are_named(name: str, config: dict[str, Any], message: str) -> None:
    spacing = {"timestep_spacing": "leading"}
    with pytest.raises(InvalidArgumentError, match=message):
        schedulers.create(name, PLAIN | spacing | config, 10)
