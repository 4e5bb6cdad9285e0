"""The pipeline's arguments and its loop; equality with diffusers is in tests/parity."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport import Package, Pipeline, save_image
from sdexport.engines import EngineError
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.session import Feeds
from sdexport.runtime.denoise import DenoiseStep
from tests.helpers.counting_session import Counting
from tests.tolerances import IMAGE_ABS

FAST: dict[str, Any] = {"num_inference_steps": 3, "scheduler": "lms"}


@pytest.fixture
def counted(package: Path, pipe: Pipeline) -> tuple[Pipeline, Counting]:
    unet = Counting(pipe.session("unet"))
    sessions: dict[str, Any] = {n: pipe.session(n) for n in ("text_encoder", "vae_decoder")}
    return Pipeline(Package.load(package, verify=False), sessions=sessions | {"unet": unet}), unet


@pytest.mark.parametrize(("scale", "batch"), [(7.5, 4), (1.01, 4), (1.0, 2), (0.0, 2)])
def test_unconditional_pass_only_above_one(
    counted: tuple[Pipeline, Counting], scale: float, batch: int
) -> None:
    pipeline, unet = counted
    pipeline(["a red circle", "a blue star"], guidance_scale=scale, seed=0, **FAST)
    assert unet.batches == [batch] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 100}, "height must be a multiple of 8"),
        ({"width": 0}, "width must be a multiple of 8 from 8 to 16384, got 0"),
        ({"width": -128}, "width must be a multiple of 8"),
        ({"height": 10**12}, "height must be a multiple of 8 from 8 to 16384"),
        ({"height": 128.0}, "height must be a multiple"),
        ({"num_inference_steps": 0}, "num_inference_steps must be 1 to 100000, got 0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer"),
        ({"guidance_scale": -1.0}, "guidance_scale must be 0 or more, got -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be 0 or more"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be 0 or more"),
        ({"seed": 2**64}, "seed: expected"),
        ({"seed": [1, 2]}, "got 2 seeds for 1 images"),
        ({"scheduler": "magic"}, "unknown scheduler 'magic'"),
        ({"scheduler": "lms", "eta": 0.5}, "has no eta"),
        ({"negative_prompt": ["a", "b"]}, "1 prompts and 2 negative prompts"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be 1 to 100000, got 0"),
        ({"prompt": []}, "at least one prompt"),
        (
            {"latents": np.zeros((1, 4, 8, 8), np.float32)},
            r"latents: expected float32 \(1, 4, 16, 16",
        ),
    ],
)
def test_call_refuses_wrong_arguments(
    pipe: Pipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**({"prompt": "a red circle", "num_inference_steps": 2} | arguments))


def test_call_same_seed_same_picture(pipe: Pipeline) -> None:
    a, b, c = (pipe("a red circle", seed=s, **FAST).images[0].tobytes() for s in (0, 0, 1))
    assert a == b != c
    assert pipe("a red circle", **FAST).parameters[0].seed is not None


def test_call_seed_list_equals_single_pictures(pipe: Pipeline) -> None:
    many = pipe(["a red circle", "a blue star"], seed=[5, 0], **FAST)
    for image, prompt, seed in zip(
        many.images, ["a red circle", "a blue star"], [5, 0], strict=True
    ):
        one = pipe(prompt, seed=seed, **FAST).images[0]
        assert np.abs(np.asarray(one, int) - np.asarray(image, int)).max() <= IMAGE_ABS


def test_call_empty_prompt_and_many_images(pipe: Pipeline) -> None:
    result = pipe("", seed=3, num_images_per_prompt=2, **FAST)
    assert [image.size for image in result.images] == [(128, 128)] * 2
    assert result.images[0].tobytes() != result.images[1].tobytes()
    assert set(result.seconds) == {"encode", "denoise", "decode"}


@pytest.mark.parametrize("size", [(8, 8), (136, 72), (64, 256)])
def test_call_any_multiple_of_eight(pipe: Pipeline, size: tuple[int, int]) -> None:
    result = pipe("a red circle", width=size[0], height=size[1], seed=0, **FAST)
    assert result.images[0].size == size


def test_call_from_latents_equals_seed(pipe: Pipeline) -> None:
    from sdexport import TorchGenerator

    latents = TorchGenerator(9).randn((1, 4, 16, 16))
    a, b = pipe("a star", seed=9, **FAST), pipe("a star", latents=latents, **FAST)
    assert a.images[0].tobytes() == b.images[0].tobytes()
    assert b.parameters[0].seed is None


def test_denoise_yields_every_step_and_can_be_left(pipe: Pipeline) -> None:
    sampler = pipe.scheduler("ddim", 5)
    embeds = pipe.encode(["a red circle"], [""])
    noise = np.random.default_rng(0).standard_normal((1, 4, 16, 16), dtype=np.float32)
    kept = noise.copy()
    steps = list(pipe.denoise(noise, embeds, sampler, guidance_scale=5.0))
    assert [s.index for s in steps] == [0, 1, 2, 3, 4]
    assert [s.timestep for s in steps] == list(sampler.timesteps)
    assert all(s.latents.dtype == np.float32 for s in steps)
    np.testing.assert_array_equal(noise, kept)
    loop = pipe.denoise(noise, embeds, pipe.scheduler("ddim", 5), guidance_scale=5.0)
    next(loop)
    loop.close()
    assert pipe("a red circle", seed=0, **FAST).images


def test_denoise_steps_belong_to_the_receiver(pipe: Pipeline) -> None:
    def spoil(step: DenoiseStep) -> None:
        if step.index < 2:
            step.latents[:] = step.pred_original_sample[:] = 0

    a, b = pipe("a star", seed=1, **FAST), pipe("a star", seed=1, on_step=spoil, **FAST)
    assert a.images[0].tobytes() == b.images[0].tobytes()


def test_denoise_wants_embeddings_for_the_guidance(pipe: Pipeline) -> None:
    noise = np.zeros((1, 4, 16, 16), np.float32)
    with pytest.raises(ValueError, match="two rows for each of 1 images"):
        next(pipe.denoise(noise, pipe.encode(["x"]), pipe.scheduler("ddim", 2)))


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_not_finite_numbers_name_the_component(
    package: Path, pipe: Pipeline, component: str
) -> None:
    class Broken(Counting):
        def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
            return {k: np.full_like(v, np.nan) for k, v in self.inner.run(feeds).items()}

    names = ("text_encoder", "unet", "vae_decoder")
    sessions: dict[str, Any] = {n: pipe.session(n) for n in names}
    sessions[component] = Broken(sessions[component])
    broken = Pipeline(Package.load(package, verify=False), sessions=sessions)
    with pytest.raises(EngineError, match=f"{component}: the output holds NaN or infinity"):
        broken("a red circle", seed=0, **FAST)


def test_pipeline_in_threads_generates_the_same_images(pipe: Pipeline) -> None:
    def generate(seed: int) -> bytes:
        return pipe("a red circle", seed=seed, **FAST).images[0].tobytes()

    one = [generate(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(generate, range(4))) == one


def test_pipeline_closed(package: Path) -> None:
    with Pipeline(Package.load(package, verify=False)) as pipeline:
        pipeline.session("text_encoder")
    pipeline.close()
    with pytest.raises(EngineError, match="the pipeline is closed"):
        pipeline("a red circle", **FAST)


def test_save_image_writes_the_parameters(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe("a röd circle 🔴", "blurry", guidance_scale=5.0, seed=7, **FAST)
    save_image(result.images[0], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        text = image.info["parameters"]
        assert image.tobytes() == result.images[0].tobytes()
    assert text.startswith("a röd circle 🔴\nNegative prompt: blurry\nSteps: 3, Sampler: LMS, ")
    assert "CFG scale: 5, Seed: 7, Size: 128x128, Model hash: " in text
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"]


def test_save_image_into_a_missing_folder_writes_nothing(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(OSError, match="No such file or directory"):
        save_image(image, tmp_path / "no" / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.tiff", ".png"])
def test_save_image_rejects_other_suffixes(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"use a name that ends in \.png"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / name)
    assert not list(tmp_path.iterdir())
