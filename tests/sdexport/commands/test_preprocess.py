"""sdexport preprocess: control images from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdexport import preprocessors
from sdexport.cli import main
from sdexport.commands.preprocess import METHODS
from tests.helpers.random_pictures import random_picture


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["preprocess", *map(str, arguments)])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(random_picture(np.random.default_rng(0), "photograph", 60, 70)).save(path)
    return path


def test_every_method_is_a_command() -> None:
    assert {name.replace("-", "_") for name in METHODS} == set(preprocessors.METHODS)


@pytest.mark.parametrize(
    ("method", "options", "arguments"),
    [
        ("canny", ["--low", "50", "--high", "90.5"], {"low": 50, "high": 90.5}),
        ("canny", ["--l2-gradient"], {"l2_gradient": True}),
        ("soft-edges", [], {}),
        ("scribble", ["--threshold", "30"], {"threshold": 30}),
        ("lineart", [], {}),
        ("invert", [], {}),
        (
            "tile",
            ["--resolution", "128", "--downsample", "2"],
            {"resolution": 128, "downsample": 2},
        ),
    ],
)
def test_image_is_that_of_the_function(
    method: str, options: list[str], arguments: dict[str, float], picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    result = call(method, picture, "-o", out, *options)
    assert result.exit_code == 0, result.output
    expected = getattr(preprocessors, method.replace("-", "_"))(picture, **arguments)
    assert result.output == f"{out}: {expected.width}x{expected.height}\n"
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_inpaint_writes_numbers(picture: Path, tmp_path: Path) -> None:
    mask, out = np.zeros((60, 70), np.uint8), tmp_path / "out.npy"
    mask[:, 30:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    result = call("inpaint", picture, "--mask", tmp_path / "mask.png", "-o", out, "--json")
    assert json.loads(result.output) == {"output": str(out), "width": 70, "height": 60}
    np.testing.assert_array_equal(np.load(out), preprocessors.inpaint(picture, mask))


def test_settings_of_the_image_are_not_copied(tmp_path: Path) -> None:
    from sdexport import save_image

    image = Image.new("RGB", (64, 64))
    image.info["parameters"] = "a red square"
    save_image(image, tmp_path / "in.png")
    assert call("tile", tmp_path / "in.png", "-o", tmp_path / "out.png").exit_code == 0
    with Image.open(tmp_path / "out.png") as written:
        assert not written.info


def test_existing_file_needs_force(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert call("canny", picture, "-o", out).exit_code == 0
    before = out.read_bytes()
    again = call("canny", picture, "-o", out, "--low", "10")
    assert again.exit_code == 1 and "use --force" in again.stderr
    assert out.read_bytes() == before
    assert call("canny", picture, "-o", out, "--low", "10", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["canny", "in.png", "-o", "out.png", "--threshold", "3"], 2, "--threshold is not for can"),
        (["lineart", "in.png", "-o", "out.png", "--mask", "in.png"], 2, "--mask is not for"),
        (["inpaint", "in.png", "-o", "out.npy"], 2, "inpaint needs --mask"),
        (["inpaint", "in.png", "-o", "out.png", "--mask", "in.png"], 2, "use a name .npy"),
        (["hed", "in.png", "-o", "out.png"], 2, "'hed' is not one of"),
        (["canny", "in.png"], 2, "Missing option"),
        (["canny", "in.png", "-o", "out.txt"], 1, "use a name that ends in"),
        (["canny", "none.png", "-o", "out.png"], 1, "no image at"),
        (["canny", "text.png", "-o", "out.png"], 1, "cannot be read as an image"),
        (["canny", "in.png", "-o", "none/out.png"], 1, "there is no folder"),
        (["canny", "in.png", "-o", "out.png", "--low", "-3"], 1, "low must be 0"),
        (["canny", "in.png", "-o", "out.png", "--low", "nan"], 1, "low must be 0"),
        (["tile", "in.png", "-o", "out.png", "--resolution", "9999"], 1, "resolution must be"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    status: int,
    message: str,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    result = call(*arguments)
    assert result.exit_code == status and message in result.stderr
    if status == 1:
        assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))
