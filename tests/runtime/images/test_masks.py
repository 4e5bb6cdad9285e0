"""Masks of every kind that people bring, and what is wrong with others."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sdexport.runtime.images import masks
from sdexport.runtime.images.masks import adjusted, load_masks

BOX = np.zeros((12, 20), bool)
BOX[3:9, 5:15] = True
STROKE = Image.fromarray(BOX.astype(np.uint8) * 255)


def binary(mask: Image.Image) -> np.ndarray:
    return masks.binary([mask], 1)


ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "bool": lambda m: m,
    "0/1 uint8": lambda m: m.astype(np.uint8),
    "0/255 uint8": lambda m: m.astype(np.uint8) * 255,
    "0/1 int64": lambda m: m.astype(int),
    "0/255 int32": lambda m: m.astype(np.int32) * 255,
    "0/65535 uint16": lambda m: m.astype(np.uint16) * 65535,
    "0/1 uint16": lambda m: m.astype(np.uint16),
    "0..1 float32": lambda m: m.astype(np.float32) * 0.8,
    "0..1 float64": lambda m: m.astype(float),
    "0..1 float16": lambda m: m.astype(np.float16),
    "0..255 float32": lambda m: m.astype(np.float32) * 200,
    "a little above 1": lambda m: m * 1.0005,
    "H W 1": lambda m: m[..., None],
    "1 H W": lambda m: m[None],
    "1 1 H W": lambda m: m[None, None].astype(np.float32),
    "1 H W 1": lambda m: m[None, ..., None],
    "H W 3": lambda m: np.repeat(m[..., None], 3, axis=2),
    "H W 4": lambda m: np.repeat(m[..., None], 4, axis=2),
    "0/1 H W 3": lambda m: np.repeat(m[..., None], 3, axis=2).astype(np.uint8),
    "not contiguous": lambda m: np.asfortranarray(m[::-1])[::-1],
    "torch bool": torch.from_numpy,
    "torch float": lambda m: torch.from_numpy(m)[None, None].float(),
    "a list": lambda m: [m.astype(int)],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_load_masks_reads_arrays_by_their_range(kind: str) -> None:
    """R3 of the cases from the field."""
    (mask,) = load_masks(ARRAYS[kind](BOX))
    np.testing.assert_array_equal(binary(mask)[0, 0], BOX)


@pytest.mark.parametrize("value", [True, 1, 255, 1.0, np.uint8(1), np.uint16(65535)])
def test_load_masks_all_of_one_value_is_white(value: Any) -> None:
    assert binary(load_masks(np.full((4, 5), value))[0]).all()
    assert not binary(load_masks(np.zeros((4, 5), np.asarray(value).dtype))[0]).any()


def in_mode(mode: str) -> Image.Image:
    if mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        white = STROKE.convert("RGB").convert("RGBA")
        return white.convert("LA").convert(mode) if mode == "La" else white.convert(mode)
    if mode.startswith("I;16"):
        kind = ">u2" if mode.endswith("B") else "<u2"
        return Image.frombytes(mode, (20, 12), (BOX * 65535).astype(kind).tobytes())
    if mode == "F":
        return Image.fromarray(BOX.astype(np.float32))
    if mode == "1":
        return Image.fromarray(BOX)
    return STROKE.convert("RGB").convert(mode) if mode != "I" else STROKE.convert("I")


MODES = (
    "LAB",
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBX",
    "RGBA",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
)
DEEP = ("I", "I;16", "I;16B", "F")


@pytest.mark.parametrize("mode", [*MODES, *DEEP])
def test_load_masks_of_every_pillow_mode(mode: str) -> None:
    image = in_mode(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(binary(load_masks(image)[0])[0, 0], BOX)


ZERO_ONE_FILES = {
    "png": ("L", "RGB", "I;16", "P"),
    "tiff": ("L", "RGB", "I;16", "I", "F", "P"),
    "webp": ("L", "RGB", "P"),
}


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(suffix, mode) for suffix, modes in ZERO_ONE_FILES.items() for mode in modes],
)
def test_load_masks_of_zeros_and_ones_in_files(tmp_path: Path, suffix: str, mode: str) -> None:
    """Class maps of segmentation tools, which look black."""
    ones = BOX.astype(np.uint8)
    image = Image.fromarray(ones).convert("RGB" if mode in ("RGB", "P") else "L")
    if mode == "I;16":
        image = Image.fromarray(ones.astype(np.uint16))
    elif mode in ("I", "F"):
        image = image.convert(mode)
    elif mode == "P":
        image = Image.fromarray(ones)
        image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / f"m.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(binary(load_masks(tmp_path / f"m.{suffix}")[0])[0, 0], BOX)


STROKE_KINDS = ("RGBA", "LA", "La", "RGBa", "PA", "P", "RGB key", "L key", "array")


@pytest.mark.parametrize(
    "mode", [*STROKE_KINDS, "RGBA file", "LA file", "P file", "RGB key file", "L key file"]
)
def test_load_masks_of_white_strokes_on_transparency(tmp_path: Path, mode: str) -> None:
    """R2 of the cases from the field: brightness times alpha."""
    drawing = Image.new("RGBA", STROKE.size, (255, 255, 255, 0))
    drawing.putalpha(STROKE)
    as_file, mode = mode.endswith(" file"), mode.removesuffix(" file")
    source: Any = drawing
    if mode == "array":
        source = np.asarray(drawing)
    elif mode == "P":
        source = Image.fromarray(BOX.astype(np.uint8))
        source.putpalette([255, 255, 255, 255, 255, 255])
        source.info["transparency"] = 0
    elif mode == "RGB key":
        source = Image.composite(
            Image.new("RGB", STROKE.size, "white"), Image.new("RGB", STROKE.size, "#fffffe"), STROKE
        )
        source.info["transparency"] = (255, 255, 254)
    elif mode == "L key":
        source = Image.fromarray(np.where(BOX, 255, 254).astype(np.uint8))
        source.info["transparency"] = 254
    else:
        source = drawing.convert(mode.upper()).convert(mode)
    if as_file:
        source.save(tmp_path / "strokes.png")
        source = tmp_path / "strokes.png"
    np.testing.assert_array_equal(binary(load_masks(source)[0])[0, 0], BOX)


def test_load_masks_multiplies_brightness_and_alpha() -> None:
    shades = np.array([[255, 255, 200, 200, 0, 255]], np.uint8)
    alphas = np.array([[255, 127, 255, 160, 255, 0]], np.uint8)
    image = Image.merge("LA", [Image.fromarray(shades), Image.fromarray(alphas)])
    mask = np.asarray(load_masks(image)[0].convert("L"))
    assert mask[0].tolist() == [255, 127, 200, 125, 0, 0]


@pytest.mark.parametrize("orientation", [3, 6])
def test_load_masks_applies_the_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(BOX[:, 3:], 1 if orientation == 6 else 2)
    Image.fromarray(stored.astype(np.uint8) * 255).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(binary(load_masks(tmp_path / "m.png")[0])[0, 0], BOX[:, 3:])


def test_load_masks_of_several() -> None:
    """R10 of the cases from the field."""
    batch = np.stack([BOX, ~BOX, np.zeros_like(BOX)]).astype(np.uint8)
    for source in (batch, batch[:, None], batch[..., None], list(batch.astype(bool))):
        found = np.concatenate([binary(mask) for mask in load_masks(source)])
        np.testing.assert_array_equal(found[:, 0], batch)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((4, 4), math.nan), "contains NaN or infinity"),
        (np.array([[0, -1]], np.int8), "values from -1 to 0; expected booleans, 0 to 1, or 0"),
        (np.array([[-3.5, 12.25]]), r"values from -3\.5 to 12\.25"),
        (np.array([[0, 1.4]]), r"values from 0 to 1\.4"),
        (np.zeros((0, 4)), r"got an array float64 \(0, 4\)"),
        (np.zeros(4), r"got an array float64 \(4,\)"),
        (np.zeros((5, 5, 5, 5)), r"expected \(H, W\), \(B, H, W\), or 1, 3 or 4 channels"),
        (np.full((3, 3), "x"), "expected numbers"),
        ([], "expected at least one image, got an empty list"),
        ([None], "got None"),
        (5, "got 5"),
        (Image.new("L", (3, 0)), "no pixels"),
        (Image.fromarray(np.array([[0, math.nan]], np.float32)), "contains NaN"),
        (Image.fromarray(np.array([[0, -2]], np.int32)), "values from -2 to 0"),
    ],
)
def test_load_masks_rejects(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^mask_image.*{message}") as caught:
        load_masks(source)
    assert "\n" not in str(caught.value)


def test_load_masks_rejects_files(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    with pytest.raises(ValueError, match=r"m\.png cannot be read as an image"):
        load_masks(tmp_path / "m.png")
    with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png"):
        load_masks([STROKE, tmp_path / "gone.png"])


@pytest.mark.parametrize("blur", [0.5, 4, 33])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_adjusted_blurs_as_diffusers(blur: float, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    expected = diffusers.image_processor.VaeImageProcessor.blur(image, blur)
    assert adjusted(image, blur, invert=False).tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", MODES)
def test_adjusted_inverts_before_it_blurs(mode: str) -> None:
    mask = load_masks(in_mode(mode))[0]
    np.testing.assert_array_equal(binary(adjusted(mask, 0, invert=True))[0, 0], ~BOX)
    assert adjusted(mask, 2.0, invert=False).size == mask.size
    both = adjusted(mask, 2.0, invert=True)
    expected = adjusted(adjusted(mask, 0, invert=True), 2.0, invert=False)
    assert both.tobytes() == expected.tobytes()


def test_binary_of_half_brightness() -> None:
    grey = np.array([[0, 100, 127, 128, 200, 255]], np.uint8)
    assert binary(Image.fromarray(grey)).ravel().tolist() == [0, 0, 0, 1, 1, 1]
    for half, expected in ((0.4999, 0), (0.5, 1)):
        mask = load_masks(np.array([[0, half, 1]]))[0]
        assert binary(mask).ravel().tolist() == [0, expected, 1]


def test_binary_warns_of_masks_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    dots = np.zeros((16, 16), np.uint8)
    dots[1:8, 1:8] = 255
    masks.binary([Image.fromarray(dots), Image.new("RGB", (16, 16), "red")], 8)
    assert caplog.messages == [
        "mask_image 1 of 2: nothing will be generated; its bright areas are too small",
        "mask_image 2 of 2: nothing will be generated; its brightest pixel is 76 of 255, and 128 "
        "or more is generated",
    ]
    caplog.clear()
    white = Image.new("L", (16, 16), "white")
    masks.binary([white], 8)
    assert caplog.messages == ["mask_image: everything will be generated; it is bright everywhere"]
    caplog.clear()
    masks.binary([white], 8, whole=False)
    dots[8, 8] = 128
    masks.binary([Image.fromarray(dots)], 8)
    assert not caplog.messages
