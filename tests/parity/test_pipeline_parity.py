"""Images compared with diffusers.StableDiffusionPipeline, with the same checkpoint and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from sdexport import Package, Pipeline, load_pipeline
from tests.helpers.diffusers_images import assert_same_images, generate_with_scheduler

SIZES = {"128x128": (128, 128), "192x128": (192, 128), "64x256": (64, 256), "136x72": (136, 72)}
PROMPT = "a small yellow star on a blue background"


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        checkpoint, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("backend", ["openvino"])
def test_image_of_other_backends_equals_diffusers(package: Path, theirs: Any, backend: str) -> None:
    pytest.importorskip(backend)
    arguments: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 10, "guidance_scale": 5.0}
    expected = generate_with_scheduler(theirs, "ddim", 12, width=128, height=128, **arguments)
    with load_pipeline(package, backend, verify=False) as pipe:
        assert_same_images(pipe(scheduler="ddim", seed=12, **arguments), expected)


@pytest.mark.parametrize("scheduler", ["lms", "ddim"])
@pytest.mark.parametrize("size", SIZES)
def test_image_equals_diffusers(pipe: Pipeline, theirs: Any, scheduler: str, size: str) -> None:
    width, height = SIZES[size]
    arguments: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": "red",
        "width": width,
        "height": height,
        "num_inference_steps": 25,
        "guidance_scale": 5.0,
    }
    expected = generate_with_scheduler(theirs, scheduler, 11, **arguments)
    assert_same_images(pipe(scheduler=scheduler, seed=11, **arguments), expected)


@pytest.mark.parametrize("scheduler", ["lms", "ddim"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5, 7.5, 15.0])
def test_batch_equals_diffusers_at_every_guidance(
    pipe: Pipeline, theirs: Any, scheduler: str, guidance_scale: float
) -> None:
    arguments: dict[str, Any] = {
        "prompt": [PROMPT, "", "a large red circle on a white background, 🔴 très joli"],
        "num_inference_steps": 10,
        "guidance_scale": guidance_scale,
    }
    expected = generate_with_scheduler(theirs, scheduler, 2**40 + 3, **arguments)
    assert_same_images(pipe(scheduler=scheduler, seed=2**40 + 3, **arguments), expected)


def test_eta_and_images_per_prompt_equal_diffusers(pipe: Pipeline, theirs: Any) -> None:
    arguments: dict[str, Any] = {
        "prompt": PROMPT,
        "num_inference_steps": 8,
        "num_images_per_prompt": 2,
        "eta": 0.7,
    }
    expected = generate_with_scheduler(theirs, "ddim", 4, **arguments)
    assert_same_images(pipe(scheduler="ddim", seed=4, **arguments), expected)


@pytest.mark.parametrize("scheduler", ["lms", "ddim"])
def test_torch_sessions_equal_diffusers(
    package: Path, theirs: Any, torch_sessions: dict[str, Any], scheduler: str
) -> None:
    """Our pipeline over PyTorch modules: what differs is the error of the pipeline itself."""
    over_torch = Pipeline(Package.load(package, verify=False), sessions=torch_sessions)
    arguments: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 10}
    expected = generate_with_scheduler(theirs, scheduler, 1, **arguments)
    assert_same_images(over_torch(scheduler=scheduler, seed=1, **arguments), expected)
