"""Wrong arguments: each is rejected in one line, before the first step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sdexport import Pipeline

IMAGE = np.zeros((64, 64, 3), np.uint8)
EMBEDS = np.zeros((1, 77, 96), np.float32)
NAN = math.nan
WRONG: dict[str, list[Any]] = {
    "prompt": [5, [1, 2], b"x", {"a": 1}, None, ["a", None], [], "\ud800"],
    "negative_prompt": [5, [1], [], ["a", "b"]],
    "height": ["128", [128], np.array([1, 2]), 10**5000, NAN, 1e9, -8, True],
    "num_inference_steps": ["5", NAN, -1, 10**9, 5000, [5], np.zeros((2, 2))],
    "timesteps": ["abc", [], [NAN], 5, [1, 2, 3], ["a"], [[1]], [10**9], np.array([]), object()],
    "sigmas": ["abc", [], [NAN], 5, [1, 2, 3], [-5], ["a"], [[1]], np.array([]), object()],
    "guidance_scale": ["7", NAN, -1, 1e300, [7.5], np.array([1.0, 2.0]), 10**400],
    "guidance_rescale": ["x", -0.1, 1.1, None],
    "guidance_interval": [None, 5, (1, 0)],
    "guidance_function": [5],
    "cache_interval": [5, (1, 0), "ab", (0, NAN), (-1, 1)],
    "image": [5, [], [None], {}, IMAGE + 1.5, [IMAGE, IMAGE], IMAGE * NAN, b"x"],
    "mask_image": [IMAGE],
    "mask_blur": [4, "x", NAN],
    "mask_invert": [True, 1],
    "paste_back": [True, None],
    "padding_mask_crop": [32, 0, "x"],
    "strength": [0.5],
    "num_images_per_prompt": ["2", 0, -1, 1.5, NAN, None, 10**9],
    "seed": ["1", 1.5, NAN, 2**64, -(2**63) - 1, [], [1, 2], ["a"], [None], True, {1: 2}, [[1]]],
    "noise_device": ["tpu", 5],
    "latents": [5, "x", [[1]], EMBEDS, np.zeros((1, 4, 16, 16)), np.full((1, 4, 16, 16), NAN)],
    "prompt_embeds": [EMBEDS],
    "negative_prompt_embeds": [5, EMBEDS[:, :10], EMBEDS[:, :, :9], EMBEDS[:0], EMBEDS * NAN],
    "clip_skip": [-1, 99, "1", 1.0, True, NAN, np.zeros(2)],
    "scheduler": ["magic", 5, "", ["ddim"], NAN],
    "eta": ["x", NAN, -1, 2, None, [0.5]],
    "on_step": [5, "x"],
}
OF_IMAGES: dict[str, list[Any]] = {
    "strength": ["x", NAN, 0, 2, -1, 0.1, [0.5]],
    "mask_image": [5, [IMAGE, IMAGE], [], [None], IMAGE[:0], IMAGE * NAN, IMAGE - 9.0],
    "resize_mode": ["zoom", 5, None],
}
OF_MASKS: dict[str, list[Any]] = {
    "mask_blur": ["4", NAN, -1, 1e9, [4], None, True],
    "mask_invert": [1, None, "no"],
    "paste_back": [1, None, "no"],
    "padding_mask_crop": ["32", -1, 1.5, True, 10**9, [32]],
}
OF_EMBEDS: dict[str, list[Any]] = {
    "prompt_embeds": [
        *(5, "x", [[1]], EMBEDS[0], EMBEDS.astype(float), EMBEDS * NAN, EMBEDS[:0]),
        *(EMBEDS[:, :, :50], EMBEDS[:, :0], lambda i, steps: None, lambda i, steps: EMBEDS[0]),
    ]
}


def assert_rejected(pipe: Pipeline, values: list[Any], name: str, **others: Any) -> None:
    base: dict[str, Any] = {"prompt": "a star", "num_inference_steps": 2, "scheduler": "ddim"}
    for value in values:
        with pytest.raises(ValueError) as caught:
            pipe(**{**base, **others, name: value})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", WRONG)
def test_call_refuses(pipe: Pipeline, name: str) -> None:
    samplers = {"timesteps": "ddpm", "sigmas": "euler"}
    others = {"scheduler": samplers[name]} if name in samplers else {}
    assert_rejected(pipe, WRONG[name], name, **others)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_call_with_an_image_refuses(pipe: Pipeline, name: str) -> None:
    assert_rejected(pipe, OF_IMAGES[name], name, image=IMAGE, width=64, height=72)


def test_resize_mode_is_checked_without_an_image(pipe: Pipeline) -> None:
    assert_rejected(pipe, [*OF_IMAGES["resize_mode"], ["crop"]], "resize_mode")


@pytest.mark.parametrize("name", OF_MASKS)
def test_call_with_a_mask_refuses(pipe: Pipeline, name: str) -> None:
    assert_rejected(pipe, OF_MASKS[name], name, image=IMAGE, mask_image=IMAGE + 255)


def test_call_with_a_part_of_the_image_refuses(pipe: Pipeline) -> None:
    images = {"image": IMAGE, "mask_image": IMAGE + 255, "padding_mask_crop": 4}
    assert_rejected(pipe, ["crop"], "resize_mode", **images)
    assert_rejected(pipe, [IMAGE], "mask_image", image=IMAGE, padding_mask_crop=4)


def test_call_with_no_pixels_refuses_to_paste(pipe: Pipeline) -> None:
    masks = {"mask_image": IMAGE + 255, "width": 64, "height": 64}
    assert_rejected(pipe, [True], "paste_back", image=IMAGE, output_type="latent", **masks)
    latents = np.zeros((1, 4, 8, 8), np.float32)
    assert_rejected(pipe, [True], "paste_back", image=latents, **masks)
    assert_rejected(pipe, [0], "padding_mask_crop", image=latents, **masks)


def test_call_takes_latents_of_torch_as_latents(pipe: Pipeline) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    masks = {"mask_image": np.eye(64), "mask_invert": True}
    ours, theirs = (
        pipe("a star", image=image, num_inference_steps=2, seed=1, **masks).images[0]
        for image in (latents, torch.from_numpy(latents))
    )
    assert ours.size == (64, 64)
    assert ours.tobytes() == theirs.tobytes()


def test_call_says_which_count_is_wrong(pipe: Pipeline) -> None:
    """R10 of the cases from the field."""
    prompts = {"prompt": ["a star"] * 6, "num_inference_steps": 2}
    with pytest.raises(ValueError, match="mask_image: got 4 masks to generate 6 images"):
        pipe(image=IMAGE, mask_image=[IMAGE] * 4, **prompts)
    with pytest.raises(ValueError, match="mask_image: got 3 masks for 2 images; give one for all"):
        pipe(image=[IMAGE] * 2, mask_image=[IMAGE] * 3, **prompts)
    with pytest.raises(ValueError, match="got 4 input images to generate 6 images"):
        pipe(image=[IMAGE] * 4, mask_image=IMAGE, **prompts)


def test_call_with_embeds_refuses(pipe: Pipeline) -> None:
    assert_rejected(pipe, OF_EMBEDS["prompt_embeds"], "prompt_embeds", prompt=None)


def test_call_refuses_two_ways_at_once(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="either a negative_prompt or negative_prompt_embeds"):
        pipe("a", "b", negative_prompt_embeds=EMBEDS)
    assert_rejected(pipe, [[900, 0]], "timesteps", scheduler="euler", sigmas=[1.0, 0.0])


def test_call_missing_image(pipe: Pipeline) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image at gone\.png"):
        pipe("a star", image="gone.png")


@pytest.mark.parametrize(
    "latents",
    [np.zeros((1, 4, 8)), np.zeros((1, 3, 8, 8), np.float32), "x", None],
)
def test_decode_and_denoise_refuse(pipe: Pipeline, latents: Any) -> None:
    with pytest.raises(ValueError, match="latents: expected float32"):
        pipe.decode(latents)
    with pytest.raises(ValueError, match="latents: expected float32"):
        pipe.denoise(latents, EMBEDS, pipe.scheduler("ddim", 2))


@pytest.mark.parametrize("size", [(60, 64), (64, 7), (0, 64)])
def test_encode_image_refuses(pipe: Pipeline, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixels: sides must be multiples of 8"):
        pipe.encode_image(np.zeros((1, 3, *size), np.float32))


@pytest.mark.parametrize("prompts", [5, [5], None, b"x"])
def test_encode_refuses(pipe: Pipeline, prompts: Any) -> None:
    with pytest.raises(ValueError, match="prompts must be a string or a list of strings"):
        pipe.encode(prompts)
