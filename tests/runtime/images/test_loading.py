"""Images of every mode, size and file format; files and arrays that are not images."""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdexport.runtime.images.loading import load_image, load_images
from sdexport.runtime.images.pixels import to_sample, to_uint8
from tests.tolerances import JPEG_ABS

RED, CLEAR = (200, 30, 40), (0, 0, 0, 0)
HIDDEN = (1, 2, 3)
EXIF_ORIENTATION = 0x0112


def half_clear(mode: str) -> Image.Image:
    """Red on the left, transparent on the right, in a mode with transparency."""
    image = Image.new("RGBA", (8, 4), (*RED, 255))
    image.paste(CLEAR, (4, 0, 8, 4))
    if mode == "P":
        palette = Image.new("P", image.size, 0)
        palette.putpalette([*RED, *HIDDEN])
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
    if mode in ("La", "RGBa"):
        return half_clear(mode.upper()).convert(mode)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "P", "P, alpha bytes", "RGB"])
def test_load_image_drops_alpha_as_diffusers_and_warns(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = load_image(half_clear(mode))
    assert opened.mode == "RGB"
    left, right = opened.getpixel((0, 0)), opened.getpixel((7, 3))
    red = half_clear("LA").convert("RGB").getpixel((0, 0)) if mode in ("LA", "La") else RED
    assert (left, right) == (red, HIDDEN if mode.startswith("P,") or mode == "P" else (0, 0, 0))
    assert len(caplog.messages) == 1
    assert "has transparent pixels; their stored colours are used" in caplog.text


def test_load_image_of_opaque_alpha_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    assert load_image(Image.new("RGBA", (3, 2), RED)).getpixel((2, 1)) == RED
    assert not caplog.messages


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


@pytest.mark.parametrize("top", [1, 255])
def test_load_image_reads_floats_by_their_range(tmp_path: Path, top: float) -> None:
    image = Image.fromarray(np.array([[0, 0.25, 1]], np.float32) * top)
    assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, 64, 255]
    image.save(tmp_path / "f.tiff")
    assert np.asarray(load_image(tmp_path / "f.tiff"))[0, :, 2].tolist() == [0, 64, 255]


def test_load_image_rejects_floats_of_other_ranges(tmp_path: Path) -> None:
    for value, message in ((1.5, "values from 0 to 1.5; expected"), (math.nan, "contains NaN")):
        Image.fromarray(np.array([[0, value]], np.float32)).save(tmp_path / "f.tiff")
        with pytest.raises(ValueError, match=rf"f\.tiff: {message}"):
            load_image(tmp_path / "f.tiff")


def test_load_image_of_eight_bits_in_wide_integers() -> None:
    image = Image.fromarray(np.array([[0, 7, 255]], np.int32))
    assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, 7, 255]


def test_load_image_rejects_an_image_without_pixels() -> None:
    with pytest.raises(ValueError, match="image of mode RGB: no pixels, its size is 0x5"):
        load_image(Image.new("RGB", (0, 5)))


def test_load_image_ignores_damaged_exif_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*" + b"\xff" * 20)
    assert load_image(tmp_path / "a.png").getpixel((3, 3)) == RED
    assert "a.png: its EXIF orientation cannot be read" in caplog.text


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


@pytest.mark.parametrize(
    "convert",
    [
        lambda p: p.astype(np.int64),
        lambda p: p.astype(np.uint16),
        lambda p: p.astype(np.uint16) * 257,
        lambda p: p.astype(np.float16),
        lambda p: p / 255,
        lambda p: (p / 255).astype(np.float32),
        lambda p: p / np.float32(127.5) - 1,
        lambda p: p[None],
        lambda p: p.transpose(2, 0, 1),
        lambda p: p.transpose(2, 0, 1)[None],
        lambda p: torch.from_numpy(p / np.float32(255)).permute(2, 0, 1)[None],
        lambda p: [p],
    ],
)
def test_load_image_takes_arrays_of_any_dtype_and_layout(convert: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    np.testing.assert_array_equal(np.asarray(load_image(convert(pixels))), pixels)


def test_load_images_takes_lists_and_batches() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 9, 3), np.uint8)
    for source in (pixels, list(pixels), tuple(pixels), [pixels[:2], pixels[2]]):
        loaded = load_images(source)
        np.testing.assert_array_equal(np.stack([np.asarray(i) for i in loaded]), pixels)


def test_load_image_takes_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), shade) for shade in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((5, 6, 2), np.uint8), r"got an array uint8 \(5, 6, 2\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "expected one image, got 2"),
        (np.full((4, 4), 300.0), "values from 300 to 300; expected"),
        (np.full((4, 4), 1.3), r"values from 1\.3 to 1\.3; expected"),
        (np.full((4, 4), -3), "values from -3 to -3; expected"),
        (np.full((4, 4), 70_000), "values from 70000 to 70000; expected"),
        (np.full((4, 4), np.inf), "contains NaN or infinity"),
        (np.full((4, 4), 1j), "expected numbers, got an array complex128"),
        (np.full((4, 4), "a"), "expected numbers, got an array <U1"),
        (np.float32(1), r"got np\.float32"),
        (torch.zeros(4, 4, dtype=torch.bfloat16), "a Tensor that NumPy cannot read: .*BFloat16"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (None, "got None"),
        (5, "got 5"),
        (b"abc", "got b'abc'"),
        ([[1, 2], [3, 4]], "got "),
    ],
)
def test_load_image_rejects_other_arguments(pixels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^image: .*{message}"):
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
    with pytest.raises(ValueError, match="is a folder, not a file"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"no image at https.*; addresses are not opened"):
        load_image("https://example.com/a.png")
    with pytest.raises(ValueError, match="is no file name"):
        load_image("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", Path(os.devnull)):
            with pytest.raises(ValueError, match="not a regular file"):
                load_image(path)


def test_load_image_rejects_an_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0$ftypheic" + bytes(99))
    with pytest.raises(ValueError, match=r"HEIC cannot .*: unknown format; save it as PNG, JPEG"):
        load_image(tmp_path / "IMG_1.HEIC")


def test_load_image_takes_links_and_unicode_paths(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), RED).save(tmp_path / "图像 é 🎨.png")
    assert load_image(tmp_path / "图像 é 🎨.png").size == (4, 3)
    (tmp_path / "link.png").symlink_to(tmp_path / "图像 é 🎨.png")
    assert load_image(tmp_path / "link.png").size == (4, 3)


def test_load_image_rejects_a_decompression_bomb(tmp_path: Path) -> None:
    """One kilobyte that claims to be 60000 x 60000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(ValueError, match="60000x60000 pixels, and at most 67,108,864"):
        load_image(tmp_path / "bomb.png")


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
