"""Prompt styles on every family, against conditionings that are computed from the published rules.

The expected embeddings come from transformers' text encoders, and the expected latents from loops
that call the UNet once for each prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdexport import Pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from tests.helpers.diffusers_images import image_inputs
from tests.helpers.families import build
from tests.helpers.pipeline_over_torch import over_torch
from tests.tolerances import COMPONENT_REL, COMPOSED_LATENTS_ABS, assert_close

FAST: dict[str, Any] = {"num_inference_steps": 4, "seed": 3}
FAMILIES = ("sdxl", "refiner", "lcm", "inpainting", "sd2-v")
WEIGHTED, WEIGHT = "a (red:1.4) circle", 1.4


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(family, tmp_path_factory.mktemp("styles") / family)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Iterator[Pipeline]:
    yield over_torch(folder)


def states(checkpoint: Checkpoint, pipe: Pipeline, text: str) -> list[np.ndarray]:
    """The hidden states of each text encoder that the UNet takes, (77, width)."""
    found = []
    for name, tokenizer in pipe.text_encoders.tokenizers.items():
        model = checkpoint.load(name).eval()
        with torch.inference_mode():
            result = model(torch.from_numpy(tokenizer([text])), output_hidden_states=True)
        last = pipe.package.family.text_layers.penultimate
        found.append((result.hidden_states[-2] if last else result.last_hidden_state)[0].numpy())
    return found


def test_weights_equal_the_published_rules(folder: Path, pipe: Pipeline) -> None:
    """For each encoder: times the weight and the mean restored, or away from the empty text."""
    checkpoint = Checkpoint.open(folder)
    plain, empty = (states(checkpoint, pipe, text) for text in ("a red circle", ""))
    web_ui, comfyui = [], []
    for hidden, nothing in zip(plain, empty, strict=True):
        scaled = hidden.astype(np.float64)
        scaled[2] *= WEIGHT
        web_ui.append(scaled * (hidden.mean(dtype=np.float64) / scaled.mean()))
        moved = hidden.astype(np.float64)
        moved[2] = nothing[2] + WEIGHT * (moved[2] - nothing[2])
        comfyui.append(moved)
    for style, expected in (("automatic1111", web_ui), ("comfyui", comfyui)):
        found = pipe.encode([WEIGHTED], prompt_style=style)[0]
        assert_close(found, np.concatenate(expected, -1).astype(np.float32), rel=COMPONENT_REL)


def test_equal_parts_are_one_prompt(family: str, pipe: Pipeline) -> None:
    """Whatever the family's conditioning: 0.3 and 0.7 of a prompt are the prompt."""
    arguments = FAST | image_inputs(family) | {"prompt_style": "automatic1111"}
    whole = pipe("a red circle", "blue", **arguments).latents
    parts = pipe("a red circle :0.3 AND a red circle :0.7", "blue", **arguments).latents
    assert np.abs(parts - whole).max() <= COMPOSED_LATENTS_ABS
    alternated = pipe("[a red circle|a red circle]", "blue", **arguments).latents
    assert np.abs(alternated - whole).max() <= COMPOSED_LATENTS_ABS
    other = pipe("a red circle AND a blue star", "blue", **arguments).latents
    assert np.abs(other - whole).max() > 0.01


def test_prompts_of_a_batch_are_those_of_single_calls(family: str, pipe: Pipeline) -> None:
    arguments = FAST | image_inputs(family) | {"prompt_style": "automatic1111"}
    prompts = ["a [red|blue] circle", "a star AND a [circle:square:2] :0.5"]
    many = pipe(prompts, **arguments | {"seed": [1, 2]}).latents
    for i, prompt in enumerate(prompts):
        one = pipe(prompt, **arguments | {"seed": i + 1}).latents
        assert np.abs(many[i : i + 1] - one).max() <= COMPOSED_LATENTS_ABS


@pytest.mark.parametrize("part", [0, 1])
def test_pooled_embeddings_change_with_the_prompt(family: str, pipe: Pipeline, part: int) -> None:
    """SDXL: the pooled embeddings of each step and part are those of its own text."""
    if family != "sdxl":
        pytest.skip("only SDXL has a second prompt")
    arguments: dict[str, Any] = FAST | {"prompt_style": "automatic1111", "negative_prompt": ""}
    texts = ("a red circle", "a blue star")
    alone = pipe(texts[part], **arguments).latents
    first = "[a red circle:a blue star:4]" if part == 0 else "[a red circle:a blue star:0]"
    assert np.abs(pipe(first, **arguments).latents - alone).max() <= COMPOSED_LATENTS_ABS
    both = pipe("a red circle", prompt_2="[a red circle|a blue star]", **arguments).latents
    assert np.abs(both - alone).max() > 0.001
    with pytest.raises(ValueError, match="prompt and prompt_2 must have as many parts"):
        pipe("a AND b", prompt_2="c", **arguments)
