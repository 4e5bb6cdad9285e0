"""Images of every family against diffusers' own pipeline, on small random checkpoints.

Our pipeline runs over TorchSession here: what differs is the runtime's own error. The graphs of
every family are exported and verified in tests/sdexport/test_exported_families.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sdexport import Pipeline
from tests.helpers.diffusers_images import (
    NEGATIVE,
    PROMPT,
    assert_same_images,
    generate_with_diffusers,
    image_inputs,
)
from tests.helpers.families import FAMILIES, build
from tests.helpers.pipeline_over_torch import over_torch

LIST = [PROMPT, "a large red circle, 🔴 très joli"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def both(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, Any]]:
    folder = build(family, tmp_path_factory.mktemp("families") / family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    yield over_torch(folder), theirs


CASES: dict[str, dict[str, Any]] = {
    "guided": {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": 6.0},
    "no-negative": {"prompt": PROMPT, "guidance_scale": 5.0},
    "unguided": {"prompt": PROMPT, "guidance_scale": 0.0},
    "batch": {"prompt": LIST, "negative_prompt": ["", NEGATIVE], "guidance_scale": 3.0},
    "two-each": {"prompt": PROMPT, "num_images_per_prompt": 2, "guidance_scale": 4.0},
}


@pytest.mark.parametrize("case", CASES)
def test_family_equals_diffusers(family: str, both: tuple[Pipeline, Any], case: str) -> None:
    ours, theirs = both
    arguments = CASES[case] | {"num_inference_steps": 4} | image_inputs(family)
    if family == "lcm":
        arguments.pop("negative_prompt", None)  # its pipeline knows none
    if "inpainting" in family or family == "refiner":
        arguments["strength"] = 1.0 if case == "guided" and "inpainting" in family else 0.6
    expected = generate_with_diffusers(theirs, 7, **arguments)
    assert np.ptp(expected) > 20, "the image is nearly flat and would prove nothing"
    assert_same_images(ours(seed=7, **arguments), expected)


def test_family_defaults_are_those_of_its_pipeline(family: str, both: tuple[Pipeline, Any]) -> None:
    """Guidance, strength, and for latent consistency models the steps, where nothing is said."""
    ours, theirs = both
    arguments: dict[str, Any] = {"prompt": PROMPT} | image_inputs(family)
    if family != "lcm":
        arguments["num_inference_steps"] = 6
    expected = generate_with_diffusers(theirs, 3, **arguments)
    assert_same_images(ours(seed=3, **arguments), expected)


def test_family_other_sizes(family: str, both: tuple[Pipeline, Any]) -> None:
    """Uneven latents, and for SDXL other numbers in its time_ids."""
    if image_inputs(family):
        pytest.skip("the input image decides")
    ours, theirs = both
    arguments: dict[str, Any] = {"prompt": PROMPT, "height": 72, "width": 104}
    arguments |= {"num_inference_steps": 3, "guidance_scale": 5.0}
    expected = generate_with_diffusers(theirs, 1, **arguments)
    assert_same_images(ours(seed=1, **arguments), expected)


def test_family_needs_what_it_begins_from(family: str, both: tuple[Pipeline, Any]) -> None:
    if image_inputs(family):
        with pytest.raises(ValueError, match=r"needs .*: give image"):
            both[0](PROMPT, num_inference_steps=2)


def test_sdxl_sizes_and_embeddings(tmp_path: Path) -> None:
    """Every size argument, clip_skip, and embeddings in place of texts."""
    folder = build("sdxl", tmp_path / "sdxl")
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    ours = over_torch(folder)
    arguments: dict[str, Any] = {
        "num_inference_steps": 2,
        "guidance_scale": 5.0,
        "original_size": (512, 700),
        "crops_coords_top_left": (16, 8),
        "target_size": (64, 128),
    }
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "clip_skip": 1}
    expected = generate_with_diffusers(theirs, 2, **arguments, **texts)
    assert_same_images(ours(seed=2, **arguments, **texts), expected)
    positive, negative, pooled, negative_pooled = theirs.encode_prompt(
        PROMPT, negative_prompt=NEGATIVE, clip_skip=1
    )
    embeds = {
        "prompt_embeds": positive,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
    }
    arrays = {name: tensor.detach().numpy() for name, tensor in embeds.items()}
    assert_same_images(ours(seed=2, **arguments, **arrays), expected)
    with pytest.raises(ValueError, match="pooled_prompt_embeds must come with prompt_embeds"):
        ours(prompt_embeds=arrays["prompt_embeds"], guidance_scale=1.0, num_inference_steps=1)
