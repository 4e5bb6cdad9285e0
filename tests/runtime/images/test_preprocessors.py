"""Control images: what each function draws, compared with OpenCV and diffusers where they do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport import InvalidArgumentError, preprocessors
from sdexport.runtime.images.filters import gaussian_blur, ridges
from tests.helpers.random_pictures import KINDS, random_picture
from tests.tolerances import CONTROL_IMAGE_ABS, GAUSSIAN_ABS

IMAGES = ("canny", "soft_edges", "scribble", "lineart", "invert", "tile")
SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (9, 9), (64, 80)]


@pytest.fixture(scope="module")
def cv2() -> Any:
    return pytest.importorskip("cv2", reason="opencv-python-headless is not installed")


def picture(kind: str = "photograph", height: int = 64, width: int = 80) -> np.ndarray:
    return random_picture(np.random.default_rng(0), kind, height, width)


def drawing() -> np.ndarray:
    """A black ring on white paper."""
    down, across = np.mgrid[0:96, 0:96] - 47.5
    ring = np.abs(np.hypot(down, across) - 30) < 1.5
    return np.repeat(np.where(ring, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def levels_of(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", SIZES)
def test_result_is_an_rgb_image_of_the_same_size(name: str, size: tuple[int, int]) -> None:
    for kind in KINDS:
        result = getattr(preprocessors, name)(picture(kind, *size))
        assert levels_of(result).shape == (*size, 3)


@pytest.mark.parametrize("name", IMAGES)
def test_files_images_and_arrays_give_the_same(name: str, tmp_path: Path) -> None:
    function, levels = getattr(preprocessors, name), picture()
    Image.fromarray(levels).save(tmp_path / "in.png")
    expected = levels_of(function(levels))
    for source in (tmp_path / "in.png", str(tmp_path / "in.png"), Image.fromarray(levels)):
        np.testing.assert_array_equal(levels_of(function(source)), expected)
    floats = levels.astype(np.float64) / 255
    np.testing.assert_array_equal(levels_of(function(floats)), expected)


@pytest.mark.parametrize("name", ["canny", "soft_edges", "scribble", "lineart"])
def test_lines_are_white_on_black_where_the_drawing_is(name: str) -> None:
    levels = levels_of(getattr(preprocessors, name)(drawing()))
    assert (levels == levels[..., :1]).all()
    distance = np.abs(np.hypot(*(np.mgrid[0:96, 0:96] - 47.5)) - 30)
    bright = levels[..., 0] > 100
    assert bright.any() and distance[bright].max() < 12
    assert not levels[distance > 16].max() > 60
    angles = np.degrees(np.arctan2(*(np.argwhere(bright) - 47.5).T)) // 10
    assert len(set(angles.tolist())) == 36  # the whole ring


@pytest.mark.parametrize("name", ["canny", "soft_edges", "scribble", "lineart"])
def test_flat_images_are_black(name: str) -> None:
    for level in (0, 128, 255):
        result = getattr(preprocessors, name)(np.full((40, 50, 3), level, np.uint8))
        assert levels_of(result).max() == 0


def test_canny_equals_opencv(cv2: Any) -> None:
    for kind in KINDS:
        levels = picture(kind)
        expected = cv2.Canny(levels, 100, 200)
        np.testing.assert_array_equal(levels_of(preprocessors.canny(levels))[..., 1], expected)
        l2 = levels_of(preprocessors.canny(levels, 30, 90.5, l2_gradient=True))
        expected = cv2.Canny(levels, 30, 90.5, L2gradient=True)
        np.testing.assert_array_equal(l2[..., 2], expected)


def test_invert() -> None:
    levels = picture()
    np.testing.assert_array_equal(levels_of(preprocessors.invert(levels)), 255 - levels)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.0, 6.0])
def test_gaussian_equals_opencv(cv2: Any, sigma: float) -> None:
    for size in SIZES:
        values = picture("noise", *size).astype(np.float32)
        expected = cv2.GaussianBlur(values, (0, 0), sigma).reshape(values.shape)
        assert np.abs(gaussian_blur(values, sigma) - expected).max() <= GAUSSIAN_ABS


def test_ridges_equal_opencv(cv2: Any) -> None:
    """The dilation by lines of three pixels, as annotators thin soft edges with it."""
    values = cv2.GaussianBlur(picture("noise")[..., 0].astype(np.float32), (0, 0), 2)
    lines = [np.zeros((3, 3), np.uint8) for _ in range(4)]
    lines[0][1], lines[1][:, 1], lines[2][:], lines[3][:] = 1, 1, np.eye(3), np.eye(3)[::-1]
    expected = np.zeros(values.shape, bool)
    for line in lines:
        expected |= cv2.dilate(values, line) == values
    np.testing.assert_array_equal(ridges(values), expected)
    assert not expected.all()


def test_lineart_equals_its_definition(cv2: Any) -> None:
    for levels in (picture(), picture("shapes"), drawing()):
        values = levels.astype(np.float32)
        darker = np.min(cv2.GaussianBlur(values, (0, 0), 6.0) - values, axis=2).clip(0, 255)
        darker /= max(16, np.median(darker[darker > 8]))
        expected = (darker * 127).clip(0, 255).astype(np.uint8)
        actual = levels_of(preprocessors.lineart(levels))[..., 0]
        difference = np.abs(actual.astype(int) - expected.astype(int))
        assert difference.max() <= CONTROL_IMAGE_ABS


def test_scribble_threshold() -> None:
    levels = picture()
    few, many = (levels_of(preprocessors.scribble(levels, t)) for t in (200, 20))
    assert few.sum() < many.sum()
    assert set(np.unique(many).tolist()) <= {0, 255}


def test_tile() -> None:
    levels = picture(height=100, width=150)
    np.testing.assert_array_equal(levels_of(preprocessors.tile(levels)), levels)
    assert preprocessors.tile(levels, resolution=512).size == (768, 512)
    assert preprocessors.tile(levels, resolution=512, downsample=4).size == (768, 512)
    assert preprocessors.tile(levels, downsample=4).size == (37, 25)
    blocks = np.repeat(np.repeat(picture(height=10, width=12), 4, 0), 4, 1)
    small = levels_of(preprocessors.tile(blocks, downsample=4))
    np.testing.assert_array_equal(small, blocks[::4, ::4])
    expected = Image.fromarray(levels).resize((768, 512), Image.Resampling.LANCZOS)
    resized = levels_of(preprocessors.tile(levels, resolution=512))
    np.testing.assert_array_equal(resized, np.asarray(expected))


def test_inpaint_equals_the_recipe_of_diffusers() -> None:
    levels, mask = picture(), picture("photograph")[..., 0]
    expected = levels.astype(np.float32) / 255.0
    expected[mask.astype(np.float32) / 255.0 > 0.5] = -1.0
    actual = preprocessors.inpaint(levels, mask)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected[None].transpose(0, 3, 1, 2))
    assert actual.min() == -1 and (actual[:, 0] == actual[:, 1]).any()


def test_inpaint_resizes_the_mask() -> None:
    mask = np.zeros((32, 40), np.uint8)
    mask[:, 20:] = 255
    actual = preprocessors.inpaint(picture(), mask)
    assert (actual[..., 50:] == -1).all() and (actual[..., :30] >= 0).all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("canny", {"low": -1}, "low must be 0"),
        ("canny", {"high": float("nan")}, "high must be 0"),
        ("canny", {"low": "a"}, "low must be 0"),
        ("canny", {"l2_gradient": 1}, "l2_gradient must be True or False"),
        ("scribble", {"threshold": 256}, "threshold must be 0 to 255"),
        ("tile", {"resolution": 32}, "resolution must be 64 to"),
        ("tile", {"downsample": 0.5}, "downsample must be 1 to 64"),
        ("tile", {"resolution": 8192}, "would make the image"),
        ("inpaint", {"mask_image": "missing.png"}, "no image at"),
        ("inpaint", {"mask_image": []}, "mask_image: expected at least one"),
        ("inpaint", {"mask_image": np.zeros((2, 8, 8))}, "expected one mask, got 2"),
    ],
)
def test_wrong_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidArgumentError, FileNotFoundError), match=message):
        getattr(preprocessors, name)(picture(), **arguments)


@pytest.mark.parametrize("name", IMAGES)
def test_wrong_images(name: str) -> None:
    for source in (np.full((4, 4, 3), np.nan), np.zeros((2, 4, 4, 3)), [], 3, np.zeros((0, 4))):
        with pytest.raises(InvalidArgumentError, match="image"):
            getattr(preprocessors, name)(source)


def test_methods_are_the_functions() -> None:
    assert set(preprocessors.METHODS) == set(preprocessors.__all__) - {"METHODS"}
