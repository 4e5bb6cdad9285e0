"""clip_skip compared with diffusers.StableDiffusionPipeline, with the same checkpoint and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sdexport import Pipeline
from tests.helpers.diffusers_images import assert_same_images, generate_with_scheduler

ARGUMENTS: dict[str, Any] = {
    "prompt": "a large purple star on an orange background",
    "num_inference_steps": 10,
    "clip_skip": 1,
}


@pytest.fixture
def theirs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        checkpoint, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    kind = type(pipeline.text_encoder)
    if not hasattr(pipeline.text_encoder, "text_model"):
        # diffusers 0.42 uses CLIPTextModel.text_model for clip_skip; transformers 5 has no such
        # attribute
        monkeypatch.setattr(kind, "text_model", property(lambda self: self), raising=False)
    return pipeline


def test_clip_skip_equals_diffusers(pipe: Pipeline, theirs: Any) -> None:
    expected = generate_with_scheduler(theirs, "ddim", 5, guidance_scale=1.0, **ARGUMENTS)
    ours = pipe(scheduler="ddim", seed=5, guidance_scale=1.0, **ARGUMENTS)
    assert_same_images(ours, expected)


def test_clip_skip_changes_the_embeddings(pipe: Pipeline) -> None:
    whole, skipped = (pipe.encode([ARGUMENTS["prompt"]], clip_skip=n) for n in (0, 1))
    assert whole.shape == skipped.shape and np.abs(whole - skipped).mean() > 0.1


def test_clip_skip_with_guidance_equals_diffusers(pipe: Pipeline, theirs: Any) -> None:
    """Neither skips layers for the negative prompt, whether it is text or embeddings."""
    expected = generate_with_scheduler(
        theirs, "ddim", 5, guidance_scale=5.0, negative_prompt="red", **ARGUMENTS
    )
    common = {"scheduler": "ddim", "seed": 5, "guidance_scale": 5.0, **ARGUMENTS}
    assert_same_images(pipe(negative_prompt="red", **common), expected)
    assert_same_images(pipe(negative_prompt_embeds=pipe.encode(["red"]), **common), expected)
