"""The part that is cropped, and what is pasted back, compared with diffusers."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
from PIL import Image

from sdexport.runtime.images.paste_back import PasteBack, crop_region, whole_image
from sdexport.runtime.images.resizing import RESIZE_MODES, resize

THEIRS = diffusers.image_processor.VaeImageProcessor()


def random_image(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def random_mask(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A rectangle of grey levels on black."""
    pixels = np.zeros((height, width), np.uint8)
    (left, right), (top, bottom) = (np.sort(rng.integers(0, n + 1, 2)) for n in (width, height))
    pixels[top : bottom + 1, left : right + 1] = rng.integers(1, 256)
    return Image.fromarray(pixels)


def test_crop_region_equals_diffusers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        mask = random_mask(rng, *rng.integers(1, 80, 2).tolist())
        if mask.getbbox() is None:
            continue
        width, height = (rng.integers(1, 20, 2) * 8).tolist()
        padding = int(rng.choice([0, 1, 7, 32, 500]))
        expected = THEIRS.get_crop_region(mask, width, height, pad=padding)
        assert crop_region(mask, width, height, padding) == expected


def test_crop_region_of_a_black_mask() -> None:
    with pytest.raises(ValueError, match=r"mask_image: it is black.* no area to crop"):
        crop_region(Image.new("L", (8, 8)), 64, 64, 4)


def test_paste_back_of_a_part_equals_diffusers() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        size = rng.integers(10, 80, 2).tolist()
        original, mask = random_image(rng, *size), random_mask(rng, *size)
        if mask.getbbox() is None:
            continue
        width, height = (rng.integers(2, 12, 2) * 8).tolist()
        box = crop_region(mask, width, height, 5)
        generated = random_image(rng, width, height)
        expected = THEIRS.apply_overlay(mask, original, generated, box)
        actual = PasteBack(original, mask, box)(np.asarray(generated))
        np.testing.assert_array_equal(actual, np.asarray(expected))


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_paste_back_of_the_whole_equals_diffusers(mode: str) -> None:
    rng = np.random.default_rng(2)
    original, mask = random_image(rng, 64, 40), random_image(rng, 64, 40).convert("L")
    generated = random_image(rng, 64, 40)
    expected = THEIRS.apply_overlay(mask, original, generated)
    paste_back = whole_image(original, mask, (64, 40), mode)
    np.testing.assert_array_equal(paste_back(np.asarray(generated)), np.asarray(expected))
    generated = random_image(rng, 32, 32)
    if mode == "stretch":
        full = generated.resize(original.size, Image.Resampling.LANCZOS)
        expected = THEIRS.apply_overlay(mask, original, full)
        paste_back = whole_image(original, mask, (32, 32), mode)
        np.testing.assert_array_equal(paste_back(np.asarray(generated)), np.asarray(expected))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(64, 32), (32, 64), (56, 56), (8, 128)])
def test_paste_back_puts_things_where_they_were(mode: str, size: tuple[int, int]) -> None:
    """The resized original itself as the generated image: nothing moves."""
    y, x = np.mgrid[:90, :150]
    original = Image.fromarray(np.stack([x, 2 * y, x // 2 + y], axis=2).astype(np.uint8))
    mask = Image.new("L", original.size, "white")
    resized = resize(original, *size, mode)
    result = whole_image(original, mask, size, mode)(np.asarray(resized))
    assert result.shape == (90, 150, 3)
    difference = np.abs(result.astype(int) - np.asarray(original))
    coarse = max(original.width / size[0], original.height / size[1])
    assert np.median(difference) <= coarse
    assert difference[8:-8, 8:-8].max() <= 2 * coarse + 2


def test_paste_back_keeps_every_pixel_that_is_dark_in_the_mask() -> None:
    rng = np.random.default_rng(3)
    original, mask = random_image(rng, 50, 70), Image.new("L", (50, 70))
    mask.paste("white", (10, 20, 30, 40))
    for mode in RESIZE_MODES:
        generated = np.asarray(random_image(rng, 64, 64))
        result = whole_image(original, mask, (64, 64), mode)(generated)
        kept = np.asarray(mask) == 0
        np.testing.assert_array_equal(result[kept], np.asarray(original)[kept])
        assert (result[~kept] != np.asarray(original)[~kept]).mean() > 0.9
