"""Control images in .npy files: what `sdexport preprocess inpaint` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdexport import InvalidArgumentError, preprocessors
from sdexport.runtime.images.control_images import ControlImages, Crop
from sdexport.runtime.images.input_digest import identify
from tests.helpers.random_pictures import random_picture
from tests.tolerances import RAMP_PIXEL_ABS


@pytest.fixture
def control() -> np.ndarray:
    levels = random_picture(np.random.default_rng(0), "photograph", 40, 48)
    return preprocessors.inpaint(levels, levels[..., 0])


def test_file_is_read_as_the_array(control: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "control.npy"
    np.save(path, control)
    for source in (path, str(path)):
        images = ControlImages(source)
        assert len(images) == 1 and images.size == (40, 48)
        np.testing.assert_array_equal(images.samples(48, 40, 3), control)
        half = images.samples(24, 20, 3)
        np.testing.assert_array_equal(half, ControlImages(control).samples(24, 20, 3))
        assert half.min() == -1
    (from_file,), (from_array,) = identify(path) or (), identify(control) or ()
    assert from_file.name == "control.npy" and from_file.sha256 == from_array.sha256


def test_damaged_files_are_one_line(control: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "control.npy"
    with pytest.raises(FileNotFoundError, match=r"no array at .*control\.npy"):
        ControlImages(path)
    np.save(path, control)
    whole = path.read_bytes()
    objects = np.array([{}], object)
    for content in (b"", whole[:100], whole[:-1], b"\x89PNG\r\n\x1a\n" + whole):
        path.write_bytes(content)
        with pytest.raises(InvalidArgumentError, match=r"control\.npy is damaged") as caught:
            ControlImages(path)
        assert "\n" not in str(caught.value)
    np.save(path, objects, allow_pickle=True)
    with pytest.raises(InvalidArgumentError, match=r"control\.npy is damaged"):
        ControlImages(path)
    np.save(path, np.full((4, 4, 3), np.nan))
    with pytest.raises(InvalidArgumentError, match="contains NaN"):
        ControlImages(path)
    np.save(path, np.zeros((3,), np.float32))
    with pytest.raises(InvalidArgumentError, match="expected"):
        ControlImages(path)


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill"])
@pytest.mark.parametrize("size", [(48, 40), (64, 32), (24, 56), (17, 33)])
def test_pixels_lie_where_those_of_images_lie(mode: str, size: tuple[int, int]) -> None:
    """So a control image and a mask stay aligned, whatever they are given as."""
    columns, rows = np.meshgrid(np.linspace(0, 1, 48), np.linspace(0, 1, 40))
    ramps = np.stack([columns, rows, columns * 0], -1).astype(np.float32)
    levels = (ramps * 255).astype(np.uint8)
    ours = ControlImages(ramps).samples(*size, 3, mode=mode)
    expected = ControlImages(levels).samples(*size, 3, mode=mode)
    inner = (..., slice(1, -1), slice(1, -1))  # "fill" may leave one row or column black
    assert np.abs(ours - expected)[inner].max() <= RAMP_PIXEL_ABS


def test_part_keeps_its_proportions() -> None:
    """A part of another shape has its edges repeated, as parts of images have."""
    ramp = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (40, 1))[..., None].repeat(3, 2)
    crops = [Crop((40, 40), (8, 4, 24, 36))]
    ours = ControlImages(ramp).samples(32, 32, 3, crops=crops)
    expected = ControlImages((ramp * 255).astype(np.uint8)).samples(32, 32, 3, crops=crops)
    assert np.abs(ours - expected).max() <= RAMP_PIXEL_ABS
    with pytest.raises(InvalidArgumentError, match="unknown resize_mode 'wide'"):
        ControlImages(ramp).samples(32, 32, 3, mode="wide")
