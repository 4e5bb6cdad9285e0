"""`sdexport generate --like IMAGE` and `sdexport inspect IMAGE`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdexport import Pipeline, read_parameters, save_image
from sdexport.cli import main
from sdexport.runtime.text.embeds_file import save_embeds

BASE = ("--steps", 2, "--size", "64x64")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def succeed(*arguments: object) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def image(package: Path, tmp_path: Path) -> Path:
    """An image with settings that other programs do not record."""
    path = tmp_path / "a.png"
    succeed(
        *("generate", package, "a (red:1.2) circle", "-o", path, *BASE, "--seed", 5, "--weights"),
        *("--clip-skip", 1, "--rescale", 0.3, "--noise", "cuda", "--cache-interval", "0.25:1"),
        *("--negative", "blue", "--guidance-interval", "0:0.8", "--tile", 64),
    )
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_like_writes_the_same_file(package: Path, tmp_path: Path, image: Path, suffix: str) -> None:
    """N3, N4."""
    first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
    changes = () if suffix == "png" else ("--quality", 60, "--no-mark")
    succeed("generate", package, "--like", image, "-o", first, *changes)
    result = succeed("generate", package, "--like", first, "-o", second)
    assert first.read_bytes() == second.read_bytes()
    assert "may differ" not in result.stderr
    if suffix == "png":
        assert first.read_bytes() == image.read_bytes()
    parameters = read_parameters(second)
    assert (parameters.clip_skip, parameters.noise_device) == (1, "cuda")
    assert (parameters.cache_interval, parameters.vae_tile) == ((0.25, 1.0), 64)


def test_options_replace_single_settings(package: Path, tmp_path: Path, image: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    succeed(
        *("generate", package, "a blue star", "--like", image, "--seed", 8, "--count", 2),
        *("-o", f"{out}/{{prompt}}-{{seed}}-{{clip_skip}}.webp", "--steps", 3, "--lossless"),
    )
    names = ["a-blue-star-8-1.webp", "a-blue-star-9-1.webp"]
    assert sorted(path.name for path in out.iterdir()) == names
    changed, original = read_parameters(out / names[1]), read_parameters(image)
    assert (changed.prompt, changed.seed, changed.num_inference_steps) == ("a blue star", 9, 3)
    assert changed.guidance_rescale == original.guidance_rescale
    assert changed.negative_prompt == "blue"


def test_like_for_many_prompts(package: Path, tmp_path: Path, image: Path) -> None:
    (tmp_path / "prompts.txt").write_text('a star\n{"prompt": "a circle", "seed": 2}\n')
    arguments = ("--like", image, "--prompts", tmp_path / "prompts.txt", "--json")
    report = json.loads(succeed("generate", package, *arguments, "-o", tmp_path / "b.png").stdout)[
        "images"
    ]
    assert [entry["prompt"] for entry in report] == ["a star", "a circle"]
    assert [entry["clip_skip"] for entry in report] == [1, 1]
    assert report[1]["seed"] == 2


def test_like_an_image_of_a_batch(pipe: Pipeline, package: Path, tmp_path: Path) -> None:
    arguments = {"num_inference_steps": 2, "width": 64, "height": 64}
    for seed in (3, [1, 2, 3]):
        batch = pipe(["a", "a red star", "b"], seed=seed, **arguments)
        save_image(batch.images[1], tmp_path / "a.png")
        succeed(
            "generate", package, "--like", tmp_path / "a.png", "-o", tmp_path / "b.png", "--force"
        )
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_like_with_input_images(package: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo = tmp_path / "in" / "photo.png"
    levels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(levels).save(photo)
    first, second = tmp_path / "a.webp", tmp_path / "b.webp"
    given = ("--image", photo, "--mask", photo)
    succeed("generate", package, "a star", "-o", first, *BASE, *given, "--strength", 0.6)
    again = ("generate", package, "--like", first, "-o", second, "--force")
    failed = call(*again)
    assert failed.exit_code == 1
    assert failed.stderr.count("\n") == 1
    assert "input image as image: photo.png, which is not there; give it again" in failed.stderr
    succeed(*again, *given)
    assert first.read_bytes() == second.read_bytes()
    shutil.copy(photo, tmp_path)
    succeed(*again)
    assert first.read_bytes() == second.read_bytes()


def test_like_with_embeddings(pipe: Pipeline, package: Path, tmp_path: Path) -> None:
    both = pipe.encode(["a star"], [""])
    save_embeds(tmp_path / "e.npz", both[1:], both[:1])
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    succeed("generate", package, "--embeds", tmp_path / "e.npz", "-o", first, *BASE)
    failed = call("generate", package, "--like", first, "-o", second)
    assert failed.exit_code == 1
    assert (
        "cannot be reproduced from its settings alone: it depends on prompt_embe" in failed.stderr
    )
    succeed("generate", package, "--like", first, "--embeds", tmp_path / "e.npz", "-o", second)
    assert first.read_bytes() == second.read_bytes()
    shown = succeed("inspect", first).stdout
    assert "not in the settings, and needed to reproduce the image: prompt_embeds, float32" in shown


def test_another_package_and_backend_are_one_warning(
    package: Path, half_package: Path, tmp_path: Path, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    out = tmp_path / "b.png"
    succeed("generate", half_package, "--like", image, "-o", out, "--backend", "openvino")
    (message,) = [r.getMessage() for r in caplog.records if "may differ" in r.getMessage()]
    assert message.startswith(f"{image}: the image may differ: model package (")
    for part in ("half_package (", "backend onnxruntime then, openvino now", "precision fp32 then"):
        assert part in message
    assert out.exists()


def test_recorded_backend_that_is_missing_here(
    package: Path, tmp_path: Path, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = read_parameters(image).to_dict() | {"backend": "quantum"}
    changed = Image.new("RGB", (8, 8))
    changed.info["sdexport"] = json.dumps(values)
    save_image(changed, tmp_path / "b.png")
    succeed("generate", package, "--like", tmp_path / "b.png", "-o", tmp_path / "c.png")
    assert "backend quantum then, onnxruntime now" in caplog.text


def test_like_and_prompt_sources(package: Path, tmp_path: Path, image: Path) -> None:
    nothing = call("generate", package, "-o", tmp_path / "b.png")
    assert nothing.exit_code == 2
    assert "give either PROMPT, --prompts or --embeds, or an image as --like" in nothing.stderr
    plain = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(plain)
    for path, message in (
        (plain, "plain.png carries no settings"),
        (tmp_path / "no.png", "no image at"),
        (package / "sdexport.json", "cannot be read as an image"),
    ):
        failed = call("generate", package, "--like", path, "-o", tmp_path / "b.png")
        assert failed.exit_code == 1
        assert message in failed.stderr
        assert failed.stderr.count("\n") == 1
        inspected = call("inspect", path)
        assert inspected.exit_code == 1
        assert inspected.stderr.count("\n") == 1


def test_inspect_of_an_image_that_is_missing(tmp_path: Path) -> None:
    result = call("inspect", tmp_path / "none.JPG")
    assert result.exit_code == 1 and result.stderr == f"error: no image at {tmp_path}/none.JPG\n"


def test_inspect_image(image: Path) -> None:
    """N4."""
    shown = succeed("inspect", image).stdout
    lines = {line[:20].strip(): line[20:].strip() for line in shown.splitlines()}
    assert lines["Prompt"] == "a (red:1.2) circle"
    assert lines["Clip skip"] == "1"
    assert lines["Cache interval"] == "0.25, 1.0"
    assert lines["Seed"] == "5"
    assert "Eta" not in lines
    values = json.loads(succeed("inspect", image, "--json").stdout)
    assert (values["seed"], values["clip_skip"], values["eta"]) == (5, 1, 0.0)
    assert values["file"] == {"format": "png", "mark": True}


def test_inspect_image_of_another_program(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    image.info["parameters"] = (
        "a\x1b[31mred\nstar\nSteps: 2, Sampler: DPM fast, Seed: 5, Size: 8x8, Hires upscale: 2"
    )
    save_image(image, tmp_path / "a.jpg")
    shown = succeed("inspect", tmp_path / "a.jpg").stdout
    assert "\x1b" not in shown, "no terminal codes"
    assert "a\\x1b[31mred\\nstar" in shown
    assert "not understood: Sampler: DPM fast\n" in shown
    assert "not understood: Hires upscale: 2\n" in shown
