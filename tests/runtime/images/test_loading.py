"""Images of every mode, size and file format; files and arrays that are not images."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdexport.runtime.images.loading import RESIZE_MODES, load_image, load_mask, resize
from sdexport.runtime.images.pixels import to_sample, to_uint8
from tests.tolerances import JPEG_ABS, RESIZED_ABS

RED, CLEAR = (200, 30, 40), (0, 0, 0, 0)
EXIF_ORIENTATION = 0x0112


def half_clear(mode: str) -> Image.Image:
    """Red on the left, transparent on the right, in a mode with transparency."""
    image = Image.new("RGBA", (8, 4), (*RED, 255))
    image.paste(CLEAR, (4, 0, 8, 4))
    if mode == "P":
        palette = Image.new("P", image.size, 0)
        palette.putpalette([*RED, 1, 2, 3])
        palette.paste(1, (4, 0, 8, 4))
        palette.info["transparency"] = 1
        return palette
    if mode == "P, alpha bytes":
        palette = half_clear("P")
        palette.info["transparency"] = bytes([255, 0])
        return palette
    if mode == "RGB":
        keyed = image.convert("RGB")
        keyed.info["transparency"] = (0, 0, 0)
        return keyed
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "P, alpha bytes", "RGB"])
def test_load_image_composites_transparency_over_white(mode: str) -> None:
    opened = load_image(half_clear(mode))
    assert opened.mode == "RGB"
    left, right = opened.getpixel((0, 0)), opened.getpixel((7, 3))
    red = RED if mode not in ("LA",) else half_clear("LA").convert("RGB").getpixel((0, 0))
    assert (left, right) == (red, (255, 255, 255))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX", "RGBA", "LA"]
)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4000, 1), (1, 4000)])
def test_load_image_any_mode_and_size(mode: str, size: tuple[int, int]) -> None:
    shade = Image.new("RGB", size, (60, 60, 60))
    opened = load_image(shade.convert(mode))
    assert (opened.mode, opened.size) == ("RGB", size)
    if mode != "1":
        worst = 42 if mode == "P" else 2  # dithered between colours of the palette
        assert np.abs(np.asarray(opened, int) - 60).max() <= worst


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_load_image_sixteen_bits(mode: str, tmp_path: Path) -> None:
    levels = np.array([[0, 128, 257 * 7, 32896, 65535]], np.uint16)
    image = Image.frombytes("I;16", (5, 1), levels.astype("<u2").tobytes())
    if mode == "I;16B":
        image = Image.frombytes(mode, (5, 1), levels.astype(">u2").tobytes())
    elif mode == "I":
        image = Image.fromarray(levels.astype(np.int32))
    assert image.mode == mode
    expected = [0, 0, 7, 128, 255]
    assert np.asarray(load_image(image))[0, :, 0].tolist() == expected
    if mode != "I;16B":
        path = tmp_path / ("deep.tiff" if mode == "I" else "deep.png")
        image.save(path)
        assert np.asarray(load_image(path))[0, :, 0].tolist() == expected


def test_load_image_clips_wide_integers() -> None:
    image = Image.fromarray(np.array([[-5, 70_000]], np.int32))
    assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, 255]


def test_load_image_rejects_floats(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="float pixels have no agreed range"):
        load_image(image)
    image.save(tmp_path / "f.tiff")
    with pytest.raises(ValueError, match=r"f.tiff: float pixels"):
        load_image(tmp_path / "f.tiff")


def test_load_image_rejects_a_mode_that_pillow_cannot_convert() -> None:
    with pytest.raises(ValueError, match="image of mode La cannot be read as an image"):
        load_image(Image.new("La", (2, 2)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_image_applies_the_exif_orientation(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    upright = np.full((32, 48, 3), 255, np.uint8)
    upright[:16, :16] = 0  # a black corner, up and left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    opened = np.asarray(load_image(path), int)
    assert np.abs(opened - upright).max() < JPEG_ABS


def test_load_image_takes_arrays_files_and_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for source in (pixels, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels)):
        np.testing.assert_array_equal(np.asarray(load_image(source)), pixels)
    np.testing.assert_array_equal(np.asarray(load_image(pixels[::-1, ::2])), pixels[::-1, ::2])
    np.testing.assert_array_equal(np.asarray(load_image(pixels[..., 0]))[..., 2], pixels[..., 0])


def test_load_image_takes_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), shade) for shade in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4), np.float32), r"float32 \(4, 4\)"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (None, "got None"),
        (5, "got 5"),
        (b"abc", "got b'abc'"),
        ([[1, 2], [3, 4]], "got "),
    ],
)
def test_load_image_rejects_other_arguments(pixels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(pixels)


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a red circle\n" * 20,
        encoded("PNG")[:-200],
        encoded("PNG")[:60],
        encoded("PNG")[:10],
        encoded("JPEG")[:-300],
        encoded("JPEG")[:100],
        encoded("GIF")[:50],
        encoded("WEBP")[:80],
        encoded("TIFF")[:90],
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    ],
)
def test_load_image_rejects_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA"]),
    cut=st.integers(0, 4000),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged files on its own
def test_load_image_of_damaged_files_succeeds_or_raises_one_line(
    tmp_path: Path, kind: str, cut: int, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(kind))
    for place, value in edits:
        data[place % len(data)] = value
    path = tmp_path / "damaged"
    path.write_bytes(data[: cut or None])
    try:
        assert load_image(path).mode == "RGB"
    except ValueError as error:
        assert "\n" not in str(error)


def test_load_image_rejects_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as an image"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        load_image("a\0b")


def test_load_image_rejects_a_decompression_bomb(tmp_path: Path) -> None:
    """One kilobyte that claims to be 60000 x 60000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(ValueError, match="decompression bomb"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (10_000, 1), (1, 10_000), (37, 91)])
@pytest.mark.parametrize("goal", [(64, 64), (8, 128), (136, 72)])
def test_resize_any_size(mode: str, size: tuple[int, int], goal: tuple[int, int]) -> None:
    flat = resize(Image.new("RGB", size, RED), *goal, mode)
    assert flat.size == goal
    assert np.abs(np.asarray(flat, int) - RED).max() <= RESIZED_ABS


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


def test_load_mask_of_every_mode() -> None:
    grey = np.array([[0, 100, 127, 128, 200, 255]], np.uint8)
    expected = [0, 0, 0, 1, 1, 1]
    for source in (grey, np.repeat(grey[..., None], 3, axis=2), Image.fromarray(grey)):
        mask = load_mask(source, 6, 1)
        assert (mask.shape, mask.dtype) == ((1, 1, 1, 6), np.float32)
        assert mask.ravel().tolist() == expected
    inverted = load_mask(255 - grey, 6, 1).ravel()
    assert inverted.tolist() == [1, 1, 1, 0, 0, 0]
    bilevel = Image.fromarray(grey >= 128)
    assert bilevel.mode == "1"
    assert load_mask(bilevel, 6, 1).ravel().tolist() == expected


def test_load_mask_transparent_pixels_are_generated() -> None:
    """As in editors where erased pixels are generated anew."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 255))
    image.paste(CLEAR, (4, 0, 8, 4))
    assert load_mask(image, 8, 4)[0, 0, 0].tolist() == [0] * 4 + [1] * 4


def test_load_mask_is_resized_like_the_image() -> None:
    mask = np.zeros((50, 90), np.uint8)
    mask[:, 45:] = 255
    small = load_mask(mask, 16, 8)[0, 0]
    assert set(np.unique(small)) == {0.0, 1.0}
    np.testing.assert_array_equal(small, np.repeat([[0] * 8 + [1] * 8], 8, axis=0))


def test_samples_and_pixels_are_inverse() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([pixels, pixels.T, pixels[::-1]], axis=2)
    sample = to_sample(Image.fromarray(pixels))
    assert (sample.shape, sample.dtype) == ((1, 3, 16, 16), np.float32)
    assert (sample.min(), sample.max()) == (-1, 1)
    kept = sample.copy()
    np.testing.assert_array_equal(to_uint8(sample)[0], pixels)
    np.testing.assert_array_equal(sample, kept)
    assert to_uint8(np.full((1, 3, 1, 1), 9, np.float32)).max() == 255
    assert to_uint8(np.full((1, 3, 1, 1), -9, np.float32)).max() == 0
