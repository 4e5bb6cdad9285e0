"""Resizing compared with diffusers, for every mode and any size."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
from PIL import Image

from sdexport.runtime.images.resizing import RESIZE_MODES, resize

THEIRS = diffusers.image_processor.VaeImageProcessor()
NAMES = {"stretch": "default", "crop": "crop", "fill": "fill"}


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("color", ["RGB", "L", "1", "P"])
def test_resize_equals_diffusers(mode: str, color: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        (w, h), (width, height) = rng.integers(3, 90, 2), rng.integers(1, 12, 2) * 8
        image = Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).convert(color)
        try:
            expected = THEIRS.resize(image, int(height), int(width), resize_mode=NAMES[mode])
        except ValueError:  # extreme proportions: diffusers computes a side of 0 pixels
            continue
        ours = resize(image, int(width), int(height), mode).convert("RGB")
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (10_000, 1), (1, 10_000), (37, 91)])
@pytest.mark.parametrize("goal", [(64, 64), (8, 128), (136, 72)])
def test_resize_any_size(mode: str, size: tuple[int, int], goal: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    assert resize(image, *goal, mode).size == goal
    assert resize(image, *size, mode) is image


def test_resize_of_extreme_proportions_takes_little_memory() -> None:
    """Scaled as a whole, this image would have 2.6 gigapixels."""
    stripes = np.repeat(np.arange(10_000)[None] // 5000 * 255, 2, axis=0).astype(np.uint8)
    cropped = np.asarray(resize(Image.fromarray(stripes), 512, 512, "crop"))
    assert cropped.shape == (512, 512, 3)
    assert cropped[:, 0].max() < 10 < 245 < cropped[:, -1].min()


def test_resize_modes() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # a white square in the middle of black
    image = Image.fromarray(wide)
    stretched, cropped, filled = (np.asarray(resize(image, 40, 40, m)) for m in RESIZE_MODES)
    assert stretched[20, 5].max() < 20 < 235 < stretched[20, 20].min()
    assert cropped[:, 3:-3].min() > 200
    assert filled[2, 20].min() > 235  # the edge, repeated
    assert filled[2, 2].max() < 20
    assert filled[20, 20].min() > 235


def test_resize_unknown_mode() -> None:
    with pytest.raises(ValueError, match="unknown resize_mode 'zoom'; choose one of stretch, crop"):
        resize(Image.new("RGB", (8, 8)), 8, 8, "zoom")
