"""Images and verdicts with a safety checker compared with diffusers' pipelines, which run it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sdexport import Pipeline, load_pipeline
from tests.helpers.random_pictures import random_picture
from tests.helpers.safety_checkpoint import CALL, SEED, make
from tests.helpers.shared import made_once
from tests.tolerances import IMAGE_ABS


@pytest.fixture(scope="module")
def folder(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "safety", partial(make, package))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[Pipeline]:
    with load_pipeline(folder / "package") as pipe:
        yield pipe


def theirs(folder: Path, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        class_ = getattr(diffusers, name)
        pipeline = class_.from_pretrained(folder / "checkpoint", dtype=torch.float32)
    assert pipeline.safety_checker is not None
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def compare(pipeline: Any, ours: Pipeline, **arguments: Any) -> list[bool]:
    generator = torch.Generator().manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pipeline(generator=generator, **arguments)
    actual = ours(seed=SEED, scheduler="ddim", safety=True, **arguments)
    flags = actual.nsfw_content_detected
    assert flags is not None and flags == expected.nsfw_content_detected
    for one, other in zip(actual.images, expected.images, strict=True):
        difference = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))
        assert difference.max() <= IMAGE_ABS
    return flags


def test_images_and_verdicts_equal_diffusers(folder: Path, ours: Pipeline) -> None:
    flags = compare(theirs(folder, "StableDiffusionPipeline"), ours, **CALL)
    assert 0 < sum(flags) < len(flags)


def test_image_to_image_and_inpainting_equal_diffusers(folder: Path, ours: Pipeline) -> None:
    image = Image.fromarray(random_picture(np.random.default_rng(4), "shapes", 128, 128))
    call = {**CALL, "image": [image] * len(CALL["prompt"]), "strength": 0.8}
    compare(theirs(folder, "StableDiffusionImg2ImgPipeline"), ours, **call)
    mask = np.zeros((128, 128), np.uint8)
    mask[30:90, 20:100] = 255
    call |= {"mask_image": Image.fromarray(mask), "strength": 1.0}
    compare(theirs(folder, "StableDiffusionInpaintPipeline"), ours, **call)
