"""Control images in .npy files: what `sdexport preprocess inpaint` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdexport import InvalidArgumentError, preprocessors
from sdexport.runtime.images.control_images import ControlImages
from sdexport.runtime.images.input_digest import identify
from tests.helpers.random_pictures import random_picture


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
