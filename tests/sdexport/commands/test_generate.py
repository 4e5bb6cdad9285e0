"""`sdexport generate`: initial images, previews, embeddings and guidance.

tests/sdexport/commands/test_cli.py has what every command shares.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdexport import Pipeline
from sdexport.cli import main
from sdexport.commands.shared_options import session_arguments
from sdexport.engines import open_session
from sdexport.runtime import component_sessions
from sdexport.runtime.component_engines import open_component
from sdexport.runtime.pipeline_loading import load_pipeline
from sdexport.runtime.text.embeds_file import load_embeds, save_embeds
from sdexport.verification.against_checkpoint import verify_against
from sdexport.verification.verifier import verify_package
from tests.tolerances import KEPT_IMAGE_MEAN


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with an image, a mask of its right half, and a text file."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    Image.new("RGB", (100, 60), (40, 80, 220)).save(folder / "blue.png")
    mask = np.zeros((60, 100), np.uint8)
    mask[:, 50:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "text.png").write_text("no image")
    return folder


def test_image_mask_previews_and_noise(package: Path, tmp_path: Path, inputs: Path) -> None:
    out, previews = tmp_path / "a.png", tmp_path / "previews"
    base = ["generate", package, "a red circle", "-o", out, "--steps", 4, "--seed", 3, "--json"]
    result = call(
        *base,
        *("--image", inputs / "blue.png", "--mask", inputs / "mask.png", "--strength", 0.5),
        *("--resize", "crop", "--size", "128x64", "--noise", "cuda", "--tile", 64),
        *("--previews", previews, "--preview-with", "linear"),
    )
    assert result.exit_code == 0, result.output
    (report,) = json.loads(result.stdout)["images"]
    assert (report["strength"], report["seed"], report["width"]) == (0.5, 3, 128)
    assert report["animation"] == str(previews / "steps.webp")
    # half of four steps
    names = ["step-000.png", "step-001.png", "steps.webp"]
    assert sorted(file.name for file in previews.iterdir()) == names
    generated = pixels(out)
    assert generated.shape == (64, 128, 3)
    kept = np.abs(generated[:, :48].astype(int) - (40, 80, 220)).mean()
    assert kept < KEPT_IMAGE_MEAN, "the left half is that of the initial image"
    other = call(*base[:4], tmp_path / "b.png", *base[5:], "--size", "128x64")
    assert other.exit_code == 0, other.output
    assert not np.array_equal(pixels(tmp_path / "b.png"), generated)


def test_masked_area_is_pasted_into_the_image(
    package: Path, pipe: Pipeline, tmp_path: Path, inputs: Path
) -> None:
    out = tmp_path / "a.png"
    result = call(
        *("generate", package, "a red circle", "-o", out, "--steps", 2, "--seed", 3),
        *("--image", inputs / "blue.png", "--mask", inputs / "mask.png", "--mask-invert"),
        *("--inpaint-area", "masked", "--mask-blur", 2, "--size", "64x64", "--paste-back"),
    )
    assert result.exit_code == 0, result.output
    expected = pipe(
        "a red circle",
        num_inference_steps=2,
        seed=3,
        image=inputs / "blue.png",
        mask_image=inputs / "mask.png",
        mask_invert=True,
        mask_blur=2,
        padding_mask_crop=32,
        width=64,
        height=64,
    )
    np.testing.assert_array_equal(pixels(out), np.asarray(expected.images[0]))
    assert (pixels(out)[:, 60:] == (40, 80, 220)).all()


def test_size_is_that_of_the_image_and_previews_are_numbered(
    package: Path, tmp_path: Path, inputs: Path
) -> None:
    out, previews = tmp_path / "a.png", tmp_path / "previews"
    base = ("generate", package, "a red circle", "-o", out, "--steps", 2, "--seed", 0)
    result = call(
        *base, "--image", inputs / "blue.png", "--strength", 1, "--count", 2, "--previews", previews
    )
    assert result.exit_code == 0, result.output
    assert pixels(tmp_path / "a-1.png").shape == (56, 96, 3)  # 60x100, rounded down
    assert len(list(previews.iterdir())) == 6
    assert pixels(previews / "a-1-step-001.png").shape == (56, 192, 3)
    base = ("generate", package, "a red circle", "-o", tmp_path / "b.png", "--steps", 2)
    assert call(*base, "--previews", previews).exit_code == 0
    again = call(*base[:4], tmp_path / "c.png", *base[5:], "--previews", previews)
    assert again.exit_code == 1 and "step-000.png exists; use --force" in again.stderr
    assert not (tmp_path / "c.png").exists()


def test_guidance_eta_weights_and_clip_skip_are_the_pipelines(
    package: Path, pipe: Pipeline, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    result = call(
        *("generate", package, "a (red:1.3) circle", "-o", out, "--steps", 4, "--seed", 1),
        *("--negative", "[blue]", "--guidance", 6, "--guidance-interval", "0.25:0.8"),
        *("--rescale", 0.5, "--eta", 0.4, "--scheduler", "ddim", "--weights", "--clip-skip", 1),
        *("--cache-interval", "0.5:1"),
    )
    assert result.exit_code == 0, result.output
    expected = pipe(
        "a (red:1.3) circle",
        "[blue]",
        num_inference_steps=4,
        seed=1,
        guidance_scale=6.0,
        guidance_interval=(0.25, 0.8),
        guidance_rescale=0.5,
        cache_interval=(0.5, 1.0),
        eta=0.4,
        scheduler="ddim",
        prompt_weights=True,
        clip_skip=1,
    )
    np.testing.assert_array_equal(pixels(out), np.asarray(expected.images[0]))


def test_prompt_style_is_the_pipelines(package: Path, pipe: Pipeline, tmp_path: Path) -> None:
    """Field case R6: prompts of AUTOMATIC1111's web UI."""
    prompt, out = "a [red|blue] (circle:1.2) AND a star :0.5 <lora:x:0.8>", tmp_path / "a.png"
    base = ("generate", package, prompt, "-o", out, "--steps", 4, "--seed", 1, "--size", "64x64")
    result = call(*base, "--prompt-style", "a1111")
    assert result.exit_code == 0, result.output
    arguments: dict[str, Any] = {"num_inference_steps": 4, "seed": 1, "height": 64, "width": 64}
    expected = pipe(prompt, prompt_style="automatic1111", **arguments)
    np.testing.assert_array_equal(pixels(out), np.asarray(expected.images[0]))
    assert expected.parameters[0].prompt_style == "automatic1111"
    result = call(*base, "--force", "--prompt-style", "confy")
    assert result.exit_code == 1 and "did you mean 'comfy'?" in result.stderr
    result = call(*base, "--force", "--weights", "--save-embeds", tmp_path / "e.npz")
    assert result.exit_code == 1 and "cannot be combined with --save-embeds" in result.stderr
    assert not (tmp_path / "e.npz").exists()


def test_saved_embeds_generate_the_same_image(package: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.npz"
    base = ("generate", package, "--steps", 3, "--seed", 2, "-o")
    save = (tmp_path / "a.png", "a (red:1.2) circle", "--negative", "blue", "--weights")
    save += ("--save-embeds", file)
    file.write_text("mine")
    result = call(*base, *save)
    assert result.exit_code == 1 and "e.npz exists; use --force" in result.stderr
    assert file.read_text() == "mine" and not save[0].exists()
    result = call(*base, *save, "--force")
    assert result.exit_code == 0, result.output
    assert load_embeds(file).meta["prompt"] == "a (red:1.2) circle"
    assert load_embeds(file).negative_prompt_embeds is not None
    result = call(*base, tmp_path / "b.png", "--embeds", file)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.png", "b.png", "e.npz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "INPUTS/none.png"], "no image at "),
        (["--image", "INPUTS/text.png"], "text.png cannot be read as an image"),
        (["--image", "INPUTS/blue.png", "--mask", "INPUTS/none.png"], "no image at "),
        (["--mask", "INPUTS/mask.png"], "mask_image needs an image"),
        (["--strength", "0.5"], "strength needs an image"),
        (["--image", "INPUTS/blue.png", "--strength", "1.5"], "strength must be 0 to 1, got 1.5"),
        (
            ["--image", "INPUTS/blue.png", "--strength", "0.1"],
            "strength 0.1 leaves none of 2 steps",
        ),
        (["--image", "INPUTS/blue.png", "--size", "100x128"], "width must be a multiple of 8"),
        (["--rescale", "2"], "guidance_rescale must be 0 to 1, got 2.0"),
        (["--guidance-interval", "0.8:0.2"], "guidance_interval must have start < end"),
        (["--guidance-interval", "0:3"], "guidance_interval end must be 0 to 1"),
        (["--guidance-interval", "nan:1"], "guidance_interval start must be 0 to 1"),
        (["--cache-interval", "0.5:0.5"], "cache_interval must have start < end"),
        (["--eta", "0.5", "--scheduler", "lms"], "scheduler 'lms' has no eta"),
        (["--eta", "2", "--scheduler", "ddim"], "eta"),
        (["--clip-skip", "5"], "clip_skip must be one of 0, 1 with this package, got 5"),
        (["--tile", "100"], "vae_tile must be a multiple of 8"),
        (["--tile", "8"], "vae_tile must be 64 to 16384"),
        (["--save-embeds", "OUT/e.txt"], "a file name that ends in .npz, got 'e.txt'"),
        (["--save-embeds", "OUT/no/e.npz"], "No such file or directory"),
        (["--previews", "INPUTS/text.png/p"], "Not a directory"),
        (["--previews", "OUT/p", "--rescale", "2"], "guidance_rescale must be 0 to 1, got 2.0"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    package: Path, tmp_path: Path, inputs: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = [o.replace("INPUTS", str(inputs)).replace("OUT", str(out)) for o in options]
    result = call("generate", package, "x", "-o", out / "a.png", "--steps", 2, "--json", *options)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert message in result.stderr
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ["--resize", "bend"],
        ["--inpaint-area", "middle"],
        ["--inpaint-area", "whole:3"],
        ["--inpaint-area", "masked:-1"],
        ["--inpaint-area", "masked:"],
        ["--mask-blur", "soft"],
        ["--preview-with", "magic"],
        ["--noise", "tpu"],
        ["--guidance-interval", "0.5"],
        ["--guidance-interval", "a:b"],
        ["--strength", "much"],
        ["--tile", "1.5"],
        ["--embeds", "e.npz"],
    ],
)
def test_values_that_cannot_be_are_usage_errors(
    package: Path, tmp_path: Path, options: list[str]
) -> None:
    result = call("generate", package, "x", "-o", tmp_path / "a.png", "--json", *options)
    assert result.exit_code == 2 and result.stdout == ""
    assert "Error: " in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_embeds_and_save_embeds_or_no_prompt_are_usage_errors(
    package: Path, tmp_path: Path
) -> None:
    base = ("generate", package, "-o", tmp_path / "a.png")
    for options in ((), ("--embeds", "e.npz", "--save-embeds", "f.npz")):
        result = call(*base, *options)
        assert result.exit_code == 2 and "PROMPT" in result.stderr


@pytest.mark.parametrize("width", [96, 7])
def test_embeds_that_do_not_fit_are_one_line(package: Path, tmp_path: Path, width: int) -> None:
    """Cut off, of several prompts, of another model: each says which file or what was expected."""
    file = tmp_path / "e.npz"
    embeds = np.zeros((1, 77, width), np.float32)
    cases: list[tuple[Any, str]] = [
        (lambda: file.write_bytes(b"PK\x03\x04half"), "is damaged: it is not a ZIP archive"),
        (
            lambda: save_embeds(file, np.concatenate([embeds] * 2)),
            "embeddings of one prompt, got 2",
        ),
    ]
    if width == 7:
        cases.append((lambda: save_embeds(file, embeds, embeds), "encoder_hidden_states"))
    for write, message in cases:
        write()
        result = call(
            "generate", package, "-o", tmp_path / "a.png", "--steps", 1, "--embeds", file, "--json"
        )
        assert result.exit_code == 1, result.output
        assert result.stdout == "" and result.stderr.count("\n") == 1, result.stderr
        assert message in result.stderr
    missing = call("generate", package, "-o", tmp_path / "a.png", "--embeds", tmp_path / "no.npz")
    assert missing.exit_code == 1 and "no.npz" in missing.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["e.npz"]


def test_options_reach_the_backend(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []
    whole = component_sessions.open_component
    monkeypatch.setattr(
        component_sessions, "open_component", lambda *a, **k: opened.append(k) or whole(*a, **k)
    )
    base = ["generate", package, "a red circle", "-o", tmp_path / "a.png", "--steps", 1]
    result = call(*base, "--option", "threads=1", "--option", "prepacking=False")
    assert result.exit_code == 0, result.output
    assert opened and all(k == {"threads": 1, "prepacking": False} for k in opened)


@pytest.mark.parametrize(
    ("option", "status", "words"),
    [
        (
            "precision=bf16",
            1,
            "takes no option 'precision', an option of openvino; it takes ",
        ),
        ("threads=many", 1, "threads must be a whole number from 1 to 4096, got 'many'"),
        ("threads=99999999999999", 1, "threads must be a whole number from 1 to 4096"),
        ("providers=Fast", 1, "ONNX Runtime has no Fast here; it has "),
        ("threads", 2, "expected OPTION=VALUE such as precision=bf16, got 'threads'"),
        ("=4", 2, "expected OPTION=VALUE"),
        ("low_memory=true", 2, "--option low_memory: backends have no such option"),
        ("verify=false", 2, "--option verify: backends have no"),
    ],
)
def test_options_that_cannot_be(
    package: Path, tmp_path: Path, option: str, status: int, words: str
) -> None:
    out = tmp_path / "a.png"
    result = call("generate", package, "x", "-o", out, "--steps", 1, "--option", option)
    assert (result.exit_code, out.exists()) == (status, False)
    assert words in result.stderr
    assert status == 2 or result.stderr.count("\n") == 1


def test_options_cannot_set_other_arguments() -> None:
    """Such as hashes=false, which would leave out the check of every hash."""
    functions: list[Callable[..., Any]] = [
        *(load_pipeline, Pipeline, verify_package, verify_against, open_component, open_session)
    ]
    parameters = [p for each in functions for p in inspect.signature(each).parameters.values()]
    names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    assert {"hashes", "backend", "seed"} <= names
    for name in names:
        with pytest.raises(click.UsageError, match=f"--option {name}: backends have no such"):
            session_arguments([(name, 0)], engine_dir=None)
