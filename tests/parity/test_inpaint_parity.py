"""Inpainting as people do it, compared with diffusers: parts of an image, paste-back, blur, lists.

Small random checkpoints of every family that has an inpainting pipeline, over PyTorch; what differs
is the runtime's own error. Intended differences from diffusers:

- Without a size, the whole image is generated in its own size and not in the model's.
- Several masks with num_images_per_prompt are repeated like the prompts and images, a a b b.
- A mask of another size than the image is resized to it before a part is chosen or pasted back;
  diffusers takes the coordinates of the one for the other, or fails.
- Several images can be cropped, each to its own mask; diffusers takes one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sdexport import Pipeline
from sdexport.runtime.images.resizing import RESIZE_MODES
from tests.helpers.families import build
from tests.helpers.pipeline_over_torch import over_torch
from tests.tolerances import IMAGE_ABS

FAMILIES = ("sd1", "inpainting", "sdxl", "sdxl-inpainting", "lcm")
PROMPTS = ["a small yellow star", "a red circle on a blue background"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def both(family: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Any]:
    folder = build(family, tmp_path_factory.mktemp("families") / family)
    return over_torch(folder), inpaint_pipeline(folder, xl=family.startswith("sdxl"))


def inpaint_pipeline(folder: Path, *, xl: bool) -> Any:
    """The inpainting pipeline of diffusers for a checkpoint of any task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        class_ = (
            diffusers.StableDiffusionXLInpaintPipeline
            if xl
            else diffusers.StableDiffusionInpaintPipeline
        )
        options = {} if xl else {"requires_safety_checker": False}
        pipeline = class_(**base.components, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def drawn_mask(rng: np.random.Generator, width: int, height: int, mode: str = "L") -> Image.Image:
    """A polygon and an ellipse of two brightnesses, soft or hard."""
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    corners = rng.uniform(0.1, 0.9, (4, 2)) * (width, height)
    draw.polygon([tuple(c) for c in corners], fill=255)
    x, y = rng.uniform(0, 0.5, 2) * (width, height)
    draw.ellipse((x, y, x + width * 0.4, y + height * 0.4), fill=int(rng.integers(100, 256)))
    return mask if mode == "L" else mask.convert("RGB").convert(mode)


def generate(pipeline: Any, seed: int, arguments: dict[str, Any]) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images: list[Image.Image] = pipeline(generator=generator, **arguments).images
    return images


def assert_same(ours: Any, expected: list[Image.Image]) -> None:
    for actual, image in zip(ours.images, expected, strict=True):
        assert actual.size == image.size
        difference = np.abs(np.asarray(actual, int) - np.asarray(image, int))
        assert difference.max() <= IMAGE_ABS, f"max {difference.max()} of 255"


def random_call(rng: np.random.Generator) -> dict[str, Any]:
    """Arguments that mean the same to diffusers, apart from blur."""
    width, height = rng.integers(24, 130, 2).tolist()
    image = photo(rng, width, height)
    mask = drawn_mask(rng, width, height, str(rng.choice(["L", "RGB", "1", "P", "CMYK"])))
    arguments: dict[str, Any] = {
        "prompt": PROMPTS[: rng.integers(1, 3)],
        "num_images_per_prompt": int(rng.integers(1, 3)),
        "num_inference_steps": int(rng.integers(3, 6)),
        "guidance_scale": float(rng.choice([1.0, 4.0])),
        "strength": float(rng.choice([0.4, 0.7, 0.9999, 1.0])),
        "image": image,
        "mask_image": mask,
        "width": int(rng.integers(4, 13)) * 8,
        "height": int(rng.integers(4, 13)) * 8,
    }
    if rng.random() < 0.6:
        arguments["padding_mask_crop"] = int(rng.choice([0, 3, 32]))
    return arguments


def check_random_call(pipe: Pipeline, theirs: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arguments, blur = random_call(rng), float(rng.choice([0, 2, 9]))
    ours = pipe(seed=seed, mask_blur=blur, **arguments)
    if blur:
        if arguments["mask_image"].mode in ("1", "P"):
            arguments["mask_image"] = arguments["mask_image"].convert("L")
        arguments["mask_image"] = theirs.mask_processor.blur(arguments["mask_image"], blur)
    assert_same(ours, generate(theirs, seed, arguments))


@pytest.mark.parametrize("seed", range(3))
def test_inpainting_equals_diffusers(both: tuple[Pipeline, Any], seed: int) -> None:
    check_random_call(*both, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 220))
def test_inpainting_equals_diffusers_in_many_calls(both: tuple[Pipeline, Any], seed: int) -> None:
    check_random_call(*both, seed)


def test_masked_area_defaults_equal_diffusers(family: str, both: tuple[Pipeline, Any]) -> None:
    """R4 of the cases from the field: the size of the model, and the result in the image's size."""
    ours, theirs = both
    rng = np.random.default_rng(5)
    arguments: dict[str, Any] = {"prompt": PROMPTS[0], "padding_mask_crop": 8}
    arguments |= {"num_inference_steps": 4, "guidance_scale": 6.0}
    arguments |= {"image": photo(rng, 150, 90), "mask_image": drawn_mask(rng, 150, 90)}
    result = ours(seed=1, **arguments)
    if not family.startswith("sdxl"):  # other pipelines of diffusers set the sample_size to 64
        arguments |= {"width": 64, "height": 64}
    expected = generate(theirs, 1, arguments)
    assert_same(result, expected)
    kept = np.asarray(arguments["mask_image"]) == 0
    actual, original = np.asarray(result.images[0]), np.asarray(arguments["image"])
    np.testing.assert_array_equal(actual[kept], original[kept])
    assert np.ptp(actual[~kept].astype(int) - original[~kept]) > 20


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_paste_back_equals_apply_overlay(both: tuple[Pipeline, Any], mode: str) -> None:
    """R4 of the cases from the field."""
    ours, theirs = both
    rng = np.random.default_rng(6)
    image, mask = photo(rng, 72, 56), drawn_mask(rng, 72, 56)
    settings: dict[str, Any] = {"prompt": PROMPTS, "num_inference_steps": 3, "strength": 1.0}
    settings["guidance_scale"] = 5.0
    result = ours(
        seed=2, image=image, mask_image=mask, mask_blur=3, paste_back=True, resize_mode=mode,
        **settings,
    )  # fmt: skip
    blurred = theirs.mask_processor.blur(mask, 3)
    inputs = {"image": image, "mask_image": blurred, "width": 72, "height": 56}
    expected = [
        theirs.image_processor.apply_overlay(blurred, image, generated)
        for generated in generate(theirs, 2, settings | inputs)
    ]
    assert_same(result, expected)


def test_paste_back_of_floats_has_the_pixels_of_images(both: tuple[Pipeline, Any]) -> None:
    rng = np.random.default_rng(9)
    arguments: dict[str, Any] = {"prompt": PROMPTS[0], "num_inference_steps": 2, "seed": 1}
    arguments |= {"image": photo(rng, 40, 56), "mask_image": drawn_mask(rng, 40, 56)}
    arguments |= {"padding_mask_crop": 4, "strength": 1.0}
    images, floats = (both[0](output_type=t, **arguments).images for t in ("pil", "np"))
    assert (floats.shape, floats.dtype) == ((1, 56, 40, 3), np.float32)
    np.testing.assert_array_equal(np.rint(floats[0] * 255), np.asarray(images[0]))


@pytest.mark.parametrize("many", ["masks", "both"])
def test_lists_of_masks_equal_diffusers(both: tuple[Pipeline, Any], many: str) -> None:
    """R10 of the cases from the field."""
    ours, theirs = both
    rng = np.random.default_rng(7)
    images, masks = ([f(rng, 64, 48) for _ in range(2)] for f in (photo, drawn_mask))
    arguments: dict[str, Any] = {"prompt": PROMPTS, "num_inference_steps": 4, "strength": 0.8}
    arguments |= {"width": 64, "height": 48, "guidance_scale": 3.0, "mask_image": masks}
    arguments["image"] = images if many == "both" else images[0]
    assert_same(ours(seed=3, **arguments), generate(theirs, 3, arguments))
    arrays = np.stack([np.asarray(m) for m in masks])
    stacked = ours(seed=3, **(arguments | {"mask_image": arrays}))
    assert_same(stacked, generate(theirs, 3, arguments))


def test_parts_of_several_images_equal_single_calls(both: tuple[Pipeline, Any]) -> None:
    rng = np.random.default_rng(8)
    images, masks = [photo(rng, 90, 60), photo(rng, 50, 70)], []
    masks = [drawn_mask(rng, *image.size) for image in images]
    settings: dict[str, Any] = {"num_inference_steps": 3, "strength": 0.9, "padding_mask_crop": 4}
    settings |= {"width": 64, "height": 64}
    many = both[0](PROMPTS, image=images, mask_image=masks, seed=[1, 2], **settings)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, [1, 2], strict=True)):
        one = both[0](prompt, image=images[i], mask_image=masks[i], seed=seed, **settings)
        assert_same(one, [many.images[i]])
