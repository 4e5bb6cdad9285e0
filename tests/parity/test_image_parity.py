"""Each task compared with its diffusers pipeline, with the same checkpoint and torch seeds.

Intended differences from diffusers:

- With a list of seeds each image is the one that its seed gives alone. In inpainting with one input
  image, diffusers draws the posterior from the first generator only, so that a batch with a list of
  generators differs from the images one by one.
- Several input images with num_images_per_prompt are repeated like the prompts, a a b b; diffusers
  repeats them as a b a b, which pairs prompts with the wrong images.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sdexport import Package, Pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.graphs.wrappers import parts
from sdexport.runtime.schedulers.create import EDM_NAMES
from sdexport.verification.reference import TorchSession
from tests.helpers import diffusers_schedulers as twins
from tests.helpers.diffusers_images import assert_same_images
from tests.helpers.scheduler_cases import DISCRETE

PROMPTS = ["a red circle", "a small blue star on a green background"]
NEGATIVES = ["grey", ""]
SIX = ("ddim", "lms", "euler_a", "heun", "dpm2_a", "dpmsolver++")
PLAIN: dict[str, Any] = {"prompt": PROMPTS, "negative_prompt": NEGATIVES, "num_inference_steps": 4}


def quick_then_slow(names: tuple[str, ...] = SIX) -> list[Any]:
    rest = [name for name in DISCRETE if name not in names]
    return [*names, *(pytest.param(name, marks=pytest.mark.slow) for name in rest)]


class Theirs:
    """The three pipelines of diffusers for one checkpoint."""

    def __init__(self, checkpoint: Path, unet: Any = None) -> None:
        base = diffusers.StableDiffusionPipeline.from_pretrained(
            checkpoint, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        modules = base.components | ({} if unet is None else {"unet": unet})
        self.config = dict(base.scheduler.config)
        self.text = base
        self.image, self.inpaint = (
            class_(**modules, requires_safety_checker=False)
            for class_ in (
                diffusers.StableDiffusionImg2ImgPipeline,
                diffusers.StableDiffusionInpaintPipeline,
            )
        )

    def __call__(self, scheduler: str, seed: int | list[int], **arguments: Any) -> np.ndarray:
        """Pixels from the pipeline for these arguments, (B, H, W, 3) uint8."""
        pipeline = self.text
        if "image" in arguments:
            pipeline = self.inpaint if "mask_image" in arguments else self.image
        pipeline.set_progress_bar_config(disable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated uses inside of diffusers itself
            class_ = twins.twin_class(scheduler)
            pipeline.scheduler = class_.from_config(self.config)
            generators = [torch.Generator().manual_seed(s) for s in np.atleast_1d(seed).tolist()]
            generator = generators if isinstance(seed, list) else generators[0]
            with twins.brownian_from(scheduler, generators[0]):
                result = pipeline(generator=generator, output_type="np", **arguments)
        return (result.images * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Theirs:
    return Theirs(checkpoint)


def sample_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth background with a disc and a bar."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    shades = np.random.default_rng(seed).uniform(0, 255, (4, 3))
    pixels = shades[0] * x[..., None] + shades[1] * y[..., None]
    pixels[(x - 0.35) ** 2 + (y - 0.4) ** 2 < 0.04] = shades[2]
    pixels[np.abs(x - 0.75) < 0.05] = shades[3]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def box_mask(width: int, height: int) -> Image.Image:
    """A box with soft edges that are not at multiples of 8."""
    pixels = np.zeros((height, width), np.float32)
    pixels[height // 5 : height * 3 // 4, width // 3 : width * 7 // 8] = 255
    pixels[height // 5 : height // 4] *= 0.6
    return Image.fromarray(pixels.astype(np.uint8))


def check(pipe: Pipeline, theirs: Theirs, scheduler: str, seed: Any, **arguments: Any) -> None:
    expected = theirs(scheduler, seed, **arguments)
    assert_same_images(pipe(scheduler=scheduler, seed=seed, **arguments), expected)


@pytest.mark.parametrize("scheduler", DISCRETE)
def test_text_to_image_equals_diffusers(pipe: Pipeline, theirs: Theirs, scheduler: str) -> None:
    """Stochastic samplers are equal too, as noise is drawn in the same order."""
    check(pipe, theirs, scheduler, 3, **PLAIN)


@pytest.mark.parametrize("scheduler", quick_then_slow(("ddim", "euler_a")))
@pytest.mark.parametrize("guidance_rescale", [0.3, 0.7, 1.0])
def test_guidance_rescale_equals_diffusers(
    pipe: Pipeline, theirs: Theirs, scheduler: str, guidance_rescale: float
) -> None:
    more = {"guidance_rescale": guidance_rescale, "guidance_scale": 12.0}
    check(pipe, theirs, scheduler, 2**33 + 1, **PLAIN, **more)


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_prompt_embeds_equal_diffusers(
    pipe: Pipeline, theirs: Theirs, scheduler: str, guidance_scale: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 2, 77, 96, generator=generator)
    arguments = {"num_inference_steps": 4, "guidance_scale": guidance_scale}
    names = ("prompt_embeds", "negative_prompt_embeds")
    expected = theirs(scheduler, 1, **arguments, **dict(zip(names, embeds, strict=True)))
    ours = {name: value.numpy() for name, value in zip(names, embeds, strict=True)}
    assert_same_images(pipe(scheduler=scheduler, seed=1, **arguments, **ours), expected)


@pytest.mark.parametrize("scheduler", quick_then_slow(("ddim", "euler_a", "dpm2_a", "lcm")))
def test_seed_list_equals_list_of_generators(
    pipe: Pipeline, theirs: Theirs, scheduler: str
) -> None:
    if scheduler == "dpmsolver_sde":
        pytest.skip("the stand-in for torchsde draws from one generator")
    check(pipe, theirs, scheduler, [7, 2**35], **PLAIN)
    one = {"image": sample_image(96, 64), "strength": 0.7}
    check(pipe, theirs, scheduler, [7, 2**35], **PLAIN, **one)


@pytest.mark.parametrize("scheduler", quick_then_slow())
@pytest.mark.parametrize(
    ("strength", "size"),
    [(0.3, (100, 70)), (0.8, (64, 129)), pytest.param(1.0, (128, 128), marks=pytest.mark.slow)],
)
def test_image_to_image_equals_diffusers(
    pipe: Pipeline, theirs: Theirs, scheduler: str, strength: float, size: tuple[int, int]
) -> None:
    inputs = {"image": sample_image(*size), "strength": strength}
    check(pipe, theirs, scheduler, 11, **PLAIN, **inputs)


@pytest.mark.parametrize("scheduler", ["ddim", "lms", "euler_a"])
@pytest.mark.parametrize("strength", [0.25, 0.5, 0.99, 1.0])
def test_image_to_image_at_every_strength(
    pipe: Pipeline, theirs: Theirs, scheduler: str, strength: float
) -> None:
    inputs = {"prompt": "a star", "image": sample_image(64, 64, 5), "strength": strength}
    check(pipe, theirs, scheduler, 0, num_inference_steps=7, **inputs)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm2_a"])
def test_image_to_image_of_several_images(pipe: Pipeline, theirs: Theirs, scheduler: str) -> None:
    images = [sample_image(90, 70, 1), sample_image(90, 70, 2)]
    check(pipe, theirs, scheduler, 4, **PLAIN, image=images, strength=0.6)
    check(pipe, theirs, scheduler, [4, 5], **PLAIN, image=images, strength=0.6)
    arguments = {"prompt": "a star", "num_inference_steps": 4, "num_images_per_prompt": 3}
    check(pipe, theirs, scheduler, 4, **arguments, image=images[0], strength=0.6)


@pytest.mark.parametrize(
    "scheduler", quick_then_slow(("ddim", "lms", "euler_a", "dpm2", "dpmsolver_sde", "unipc"))
)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_by_blending_equals_diffusers(
    pipe: Pipeline, theirs: Theirs, scheduler: str, strength: float
) -> None:
    inputs = {"image": sample_image(100, 90), "mask_image": box_mask(100, 90), "strength": strength}
    check(pipe, theirs, scheduler, 6, **PLAIN, **inputs, width=96, height=80)


def test_inpainting_several_images(pipe: Pipeline, theirs: Theirs) -> None:
    images = [sample_image(64, 64, 1), sample_image(64, 64, 2)]
    inputs = {"image": images, "mask_image": box_mask(64, 64), "width": 64, "height": 64}
    check(pipe, theirs, "euler_a", 8, **PLAIN, **inputs, strength=0.8)
    check(pipe, theirs, "euler_a", [8, 9], **PLAIN, **inputs, strength=1.0)
    few = {"prompt": "a star", "num_inference_steps": 4, "num_images_per_prompt": 2}
    check(pipe, theirs, "ddim", 8, **few, **(inputs | {"image": images[0]}), strength=1.0)


@pytest.fixture(scope="module")
def inpainting_unet(checkpoint: Path) -> Any:
    """A small UNet with 9 input channels and random weights."""
    torch.manual_seed(0)
    config = diffusers.UNet2DConditionModel.load_config(checkpoint / "unet")
    sizes = {"in_channels": 9, "block_out_channels": (16, 32, 32), "norm_num_groups": 8}
    return diffusers.UNet2DConditionModel.from_config({**config, **sizes}).eval()


@pytest.fixture(scope="module")
def inpainting(
    package: Path,
    checkpoint: Path,
    torch_sessions: dict[str, Any],
    inpainting_unet: Any,
) -> tuple[Pipeline, Theirs]:
    configs = Checkpoint.open(checkpoint).configs
    part = parts({**configs, "unet": inpainting_unet.config})[1]
    sessions = torch_sessions | {"unet": TorchSession(part, inpainting_unet)}
    loaded = Package.load(package, verify=False)
    manifest = replace(loaded.manifest, family="stable-diffusion-inpainting")
    ours = Pipeline(replace(loaded, manifest=manifest), sessions=sessions)
    return ours, Theirs(checkpoint, inpainting_unet)


@pytest.mark.parametrize("scheduler", ["ddim_inverse", "dpmsolver++_inverse"])
def test_inversion_equals_diffusers(pipe: Pipeline, theirs: Theirs, scheduler: str) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 16, 16)).astype(np.float32) / 2
    expected = theirs(scheduler, 3, **PLAIN, latents=torch.from_numpy(latents))
    assert_same_images(pipe(scheduler=scheduler, seed=3, **PLAIN, latents=latents), expected)
    clean = {"image": latents, "strength": 1.0}
    assert_same_images(pipe(scheduler=scheduler, seed=3, **PLAIN, **clean), expected)


@pytest.mark.parametrize("scheduler", EDM_NAMES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_edm_equals_diffusers(
    package: Path, pipe: Pipeline, checkpoint: Path, scheduler: str, prediction_type: str
) -> None:
    """Row C4: CosXL predicts v, Playground 2.5 in the way that diffusers calls epsilon."""
    config = {"prediction_type": prediction_type, "sigma_max": 120.0, "sigma_data": 1.0}
    loaded = replace(Package.load(package, verify=False), scheduler_config=config)
    parts = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
    ours = Pipeline(loaded, sessions={part: pipe.session(part) for part in parts})
    theirs = Theirs(checkpoint)
    theirs.config = config
    check(ours, theirs, scheduler, 3, **PLAIN)
    inputs = {"image": sample_image(64, 64), "strength": 0.6}
    check(ours, theirs, scheduler, 3, **PLAIN, **inputs)
    sizes = {"width": 64, "height": 64}
    check(ours, theirs, scheduler, 3, **PLAIN, **inputs, mask_image=box_mask(64, 64), **sizes)


@pytest.mark.parametrize("scheduler", quick_then_slow())
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_unet_equals_diffusers(
    inpainting: tuple[Pipeline, Theirs], scheduler: str, strength: float
) -> None:
    inputs = {"image": sample_image(100, 90), "mask_image": box_mask(100, 90), "strength": strength}
    check(*inpainting, scheduler, 6, **PLAIN, **inputs, width=96, height=80)


def test_inpainting_unet_of_several_images(inpainting: tuple[Pipeline, Theirs]) -> None:
    images = [sample_image(64, 64, 1), sample_image(64, 64, 2)]
    inputs = {"image": images, "mask_image": box_mask(64, 64), "width": 64, "height": 64}
    check(*inpainting, "euler_a", 8, **PLAIN, **inputs, strength=0.8)
    check(*inpainting, "euler_a", [8, 9], **PLAIN, **inputs, strength=1.0)
    few = {"prompt": "a star", "num_inference_steps": 4, "num_images_per_prompt": 2}
    check(*inpainting, "ddim", 8, **few, **(inputs | {"image": images[0]}), strength=0.7)


def test_inpainting_unet_needs_a_mask(inpainting: tuple[Pipeline, Theirs]) -> None:
    for arguments in ({}, {"image": sample_image(64, 64)}):
        with pytest.raises(ValueError, match="give image and mask_image"):
            inpainting[0]("a star", num_inference_steps=2, **arguments)


@pytest.mark.parametrize("masked", [False, True])
def test_seed_list_with_an_image_equals_single_calls(pipe: Pipeline, masked: bool) -> None:
    """diffusers differs in inpainting: it draws for one image from one generator."""
    inputs: dict[str, Any] = {"image": sample_image(64, 64), "strength": 0.8}
    if masked:
        inputs["mask_image"] = box_mask(64, 64)
    many = pipe(PROMPTS, num_inference_steps=4, scheduler="euler_a", seed=[1, 2], **inputs)
    for prompt, seed, image in zip(PROMPTS, [1, 2], many.images, strict=True):
        one = pipe(prompt, num_inference_steps=4, scheduler="euler_a", seed=seed, **inputs)
        assert_same_images(one, np.asarray(image)[None])


def test_images_are_repeated_like_prompts(pipe: Pipeline) -> None:
    """diffusers differs: it pairs the prompts 0 0 1 1 with the images 0 1 0 1."""
    images, seeds = [sample_image(64, 64, 1), sample_image(64, 64, 2)], [1, 2, 3, 4]
    short = pipe(**PLAIN, image=images, num_images_per_prompt=2, seed=seeds)
    written_out = pipe(
        [p for p in PROMPTS for _ in range(2)],
        [n for n in NEGATIVES for _ in range(2)],
        num_inference_steps=4,
        image=[i for i in images for _ in range(2)],
        seed=seeds,
    )
    assert_same_images(short, np.stack([np.asarray(i) for i in written_out.images]))
