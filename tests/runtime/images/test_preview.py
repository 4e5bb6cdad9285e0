"""Previews: linear RGB, single channels, images and animations of each step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport import Pipeline
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.images.preview import (
    PreviewWriter,
    channels_view,
    enlarge,
    linear_preview,
    save_animation,
)
from sdexport.runtime.schedulers import StepResult
from tests.tolerances import (
    ANIMATION_ABS,
    PREVIEW_CORRELATION,
    PREVIEW_ROUNDING_ABS,
    VAE_PREVIEW_MEAN,
)

FAST: dict[str, Any] = {"num_inference_steps": 3, "scheduler": "lms", "seed": 0}
FACTORS = ((0.5, 0, 0), (0, 0.25, 0), (0, 0, 1), (1, 1, 1), (0, 0, -0.5))
PROMPTS = [
    "a large red circle on a white background",
    "a small yellow star on a blue background",
    "a large green triangle on a black background",
    "a large purple star on an orange background",
]


def test_linear_preview_equals_the_map_by_hand() -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 3, 5)).astype(np.float32)
    pixels = linear_preview(latents, FACTORS)
    assert pixels.shape == (2, 3, 5, 3) and pixels.dtype == np.uint8
    for b, y, x in np.ndindex(2, 3, 5):
        c = latents[b, :, y, x].astype(float)
        rgb = [c[0] / 2 + c[3], c[1] / 4 + c[3], c[2] + c[3] - 0.5]
        wanted = [min(max((v / 2 + 0.5) * 255, 0), 255) for v in rgb]
        assert np.abs(pixels[b, y, x] - wanted).max() <= PREVIEW_ROUNDING_ABS


def test_linear_preview_of_zeros_is_the_bias() -> None:
    pixels = linear_preview(np.zeros((1, 4, 1, 1), np.float32), FACTORS)
    assert pixels.tolist() == [[[[128, 128, 64]]]]


@pytest.mark.parametrize("channels", [3, 5, 9])
def test_linear_preview_rejects_other_channels(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"expected factors \({channels + 1}, 3\), got \(5, 3\)"):
        linear_preview(np.zeros((1, channels, 2, 2), np.float32), FACTORS)


def test_linear_preview_rejects_other_factors() -> None:
    with pytest.raises(ValueError, match=r"got \(5, 2\)"):
        linear_preview(np.zeros((1, 4, 2, 2), np.float32), [(0, 0)] * 5)


def test_linear_preview_resembles_the_vae(pipe: Pipeline) -> None:
    """The fitted map compared with the VAE's image at one pixel per cell, for each color."""
    factors = pipe.package.manifest.preview
    assert factors is not None
    latents = pipe(PROMPTS, num_inference_steps=15, guidance_scale=5.0, seed=[0, 1, 2, 3]).latents
    coarse = linear_preview(latents, factors).astype(float)
    unit = pipe.package.manifest.downscale
    cells = (len(latents), 128 // unit, unit, 128 // unit, unit, 3)
    decoded = pipe.decode(latents).reshape(cells).mean((2, 4))
    for channel in range(3):
        pair = coarse[..., channel].ravel(), decoded[..., channel].ravel()
        assert np.corrcoef(*pair)[0, 1] >= PREVIEW_CORRELATION


def test_channels_view_scales_each_channel() -> None:
    latents = np.zeros((2, 4, 2, 3), np.float32)
    latents[0, 1, 0, 0], latents[0, 1, 1, 2] = -5, 5
    latents[1, 3] = 7
    view = channels_view(latents)
    assert view.shape == (2, 2, 12) and view.dtype == np.uint8
    assert view[0, :, 3:6].tolist() == [[0, 128, 128], [128, 128, 255]]
    assert not view[1].any() and not view[0, :, :3].any()


def test_enlarge_does_not_smooth() -> None:
    image = enlarge(np.array([[0, 255]], np.uint8), (8, 4))
    assert image.size == (8, 4)
    assert np.asarray(image).tolist() == [[0] * 4 + [255] * 4] * 4


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".WEBP"])
def test_save_animation_frames_and_durations(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 8), color) for color in ("red", "green", "blue")]
    path = tmp_path / f"a{suffix}"
    save_animation(frames, path, seconds=0.2)
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (3, (16, 8), 0)
        durations = []
        for number in range(3):
            image.seek(number)
            image.load()
            durations.append(image.info["duration"])
            difference = np.asarray(image.convert("RGB"), int) - np.asarray(frames[number], int)
            assert np.abs(difference).max() <= ANIMATION_ABS
    assert durations == [200, 200, 2000]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_save_animation_rejects_no_frames_and_other_suffixes(tmp_path: Path) -> None:
    frame = Image.new("RGB", (8, 8))
    for frames, name in (([], "a.webp"), ([frame], "a.png"), ([frame], "a")):
        with pytest.raises(
            ValueError, match=r"expected one or more frames and a name that ends in \.webp or"
        ):
            save_animation(frames, tmp_path / name)
    with pytest.raises(FileNotFoundError):
        save_animation([frame], tmp_path / "no" / "a.webp")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["vae", "linear"])
def test_writer_writes_each_step(pipe: Pipeline, tmp_path: Path, method: str) -> None:
    writer = PreviewWriter(pipe, tmp_path / "a" / "b", method=method, prefix="x-")
    result = pipe(["a red circle", "a blue star"], on_step=writer, **FAST)
    assert writer.finish() == tmp_path / "a" / "b" / "x-steps.webp"
    names = ["x-step-000.png", "x-step-001.png", "x-step-002.png", "x-steps.webp"]
    assert sorted(file.name for file in writer.folder.iterdir()) == names
    with Image.open(writer.folder / "x-steps.webp") as image:
        assert (image.n_frames, image.size) == (3, (256, 256))
    with Image.open(writer.folder / names[2]) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (256, 256, 3)
    if method == "vae":
        last = np.concatenate([np.asarray(image) for image in result.images])
        assert np.abs(pixels[:, 128:].astype(int) - last).mean() < VAE_PREVIEW_MEAN


def test_writer_linear_does_not_decode(pipe: Pipeline, tmp_path: Path) -> None:
    decoder = SimpleNamespace(package=pipe.package)
    writer = PreviewWriter(decoder, tmp_path, method="linear")
    latents = np.full((1, 4, 2, 3), 0.5, np.float32)
    writer(DenoiseStep(0, 1, 999.0, latents, StepResult(latents, -latents)))
    with Image.open(tmp_path / "step-000.png") as image:
        pixels = np.asarray(image)
    factors = pipe.package.manifest.preview
    assert factors is not None
    assert pixels.shape == (16, 48, 3)
    assert (pixels[:, 24:] == linear_preview(-latents, factors)[0, 0, 0]).all()


def test_writer_rejects_other_methods_and_packages_without_factors(
    pipe: Pipeline, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="unknown preview 'magic'; choose one of vae, linear"):
        PreviewWriter(pipe, tmp_path / "a", method="magic")
    bare = SimpleNamespace(package=SimpleNamespace(manifest=SimpleNamespace(preview=None)))
    with pytest.raises(ValueError, match="no factors for linear previews: export it again"):
        PreviewWriter(bare, tmp_path / "a", method="linear")
    assert not list(tmp_path.iterdir())
    PreviewWriter(bare, tmp_path / "a", method="vae")


def test_writer_folder_that_cannot_be_written(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder, error in (("file", FileExistsError), ("file/a", NotADirectoryError)):
        with pytest.raises(error):
            pipe("a red circle", on_step=PreviewWriter(pipe, tmp_path / folder), **FAST)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_writer_without_steps(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one or more frames"):
        PreviewWriter(pipe, tmp_path).finish()
