"""Image files that ask for memory, time or another program."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from sdexport import InvalidArgumentError, read_parameters
from sdexport.runtime.images import image_limits
from sdexport.runtime.images.image_limits import FORMATS, MAX_PIXELS
from sdexport.runtime.images.loading import load_image, open_image
from sdexport.runtime.images.masks import load_masks
from tests.helpers.limited_process import MALFORMED_MB, assert_malformed, outcomes

LARGEST_MB = 16 * MAX_PIXELS / 1e6
"""What the largest image may take; see MAX_PIXELS."""
NOISE = Image.effect_noise((64, 64), 90)
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 8 8 rectfill
showpage
"""


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.new("RGB", (8, 8), "red")).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check


def png(width: int, height: int, *more: bytes, depth: int = 8, kind: int = 2) -> bytes:
    """A PNG file of zeros, if its pixels are as many as a MB, and of `more` chunks."""
    row = 1 + width * depth * {0: 1, 2: 3, 6: 4}[kind] // 8
    packer = zlib.compressobj(9)
    zeros = bytes(2**20)
    size = row * height if width * height <= MAX_PIXELS else 1000
    body = b"".join(packer.compress(zeros[: min(2**20, size - at)]) for at in range(0, size, 2**20))
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = (
        chunk(b"IHDR", head),
        *more,
        chunk(b"IDAT", body + packer.flush()),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(*fields: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """A TIFF file of fields (tag, type, count, value or place)."""
    directory = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHLL", *field) for field in sorted(fields)
    )
    return b"II*\0" + struct.pack("<L", 8) + directory + b"\0\0\0\0" + data


def with_scans(count: int) -> bytes:
    """A progressive JPEG file whose last scan is repeated."""
    whole = encoded("JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


def with_comments(count: int, comment: bytes = b"\x01a\0") -> bytes:
    whole = encoded("GIF")
    place = whole.index(b"\x2c")
    return whole[:place] + (b"\x21\xfe" + comment) * count + whole[place:]


def with_webp_size(width: int, height: int) -> bytes:
    whole = bytearray(encoded("WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"))
    assert whole[12:16] == b"VP8X"
    whole[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(whole)


def strips(count: int) -> tuple[tuple[int, int, int, int], ...]:
    one = [(tag, 4, 1, 1) for tag in (256, 257, 277, 278)]
    return (*one, (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, count, 8))


TILED = [(256, 4, 8), (257, 4, 8), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
TILED += [(322, 4, 60_000), (323, 4, 60_000), (324, 4, 134), (325, 4, 17)]

HOSTILE = {
    "eps": (EPS, "unknown format"),
    "postscript": (b"%!PS" + EPS[4:], "unknown format"),
    "windows metafile": (b"\xd7\xcd\xc6\x9a" + bytes(60), "unknown format"),
    "jpeg 2000": (encoded("JPEG2000"), "unknown format"),
    "ppm": (encoded("PPM"), "unknown format"),
    "nothing": (b"", "unknown format"),
    "png of 3.6 gigapixels": (png(60_000, 60_000), "60000x60000 pixels, and at most"),
    "png of 2**31 in a row": (png(2**31 - 1, 1), "2147483647x1 pixels, and at most"),
    "png with 16 bits": (png(9000, 9000, depth=16, kind=6), "9000x9000 pixels, and at most"),
    "png of many chunks": (png(8, 8, chunk(b"prVt", b"") * 5000), "parts that are no pixels"),
    "gif of 4 gigapixels": (
        encoded("GIF").replace(struct.pack("<HH", 8, 8), b"\xff" * 4),
        "65535x65535 pixels, and at most",
    ),
    "gif of many comments": (with_comments(5000), "parts that are no pixels"),
    "gif comment of many blocks": (
        with_comments(1, b"\x01a" * 300_000 + b"\0"),
        "parts that are no pixels",
    ),
    "webp of 2**32 pixels": (with_webp_size(65536, 65535), "65536x65535 pixels, and at most"),
    "jpeg of 4 gigapixels": (
        encoded("JPEG").replace(struct.pack(">HH", 8, 8), b"\xff\xdc\xff\xdc"),
        "65500x65500 pixels, and at most",
    ),
    "jpeg of many scans": (with_scans(70), "more than 64 scans"),
    "tiff of many strips": (tiff(*strips(2**28)), "more than the file can hold"),
    "tiff of many numbers": (tiff(*strips(2**21), data=bytes(2**23)), "more than the file can"),
    "tiff that names itself often": (
        tiff(*((tag, 2, 60_000, 0) for tag in range(1000, 3000)), data=bytes(50_000)),
        "more than the file can hold",
    ),
    "tiff of a huge tile": (
        tiff(*((t, k, 1, v) for t, k, v in TILED), data=zlib.compress(bytes(1000))),
        "60000x60000 pixels, and at most",
    ),
    "tiff without end": (b"II*\0\xff\xff\xff\x7f", "truncated"),
    "bmp of 4 gigapixels": (
        encoded("BMP").replace(struct.pack("<ii", 8, 8), struct.pack("<ii", 60_000, 60_000)),
        "60000x60000 pixels, and at most",
    ),
    "truncated": (encoded("PNG", NOISE)[:500], "cannot be read as an image"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_images_are_rejected_by_name(tmp_path: Path, kind: str) -> None:
    content, message = HOSTILE[kind]
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    for load in (load_image, load_masks):
        with pytest.raises(InvalidArgumentError, match=message) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path} cannot be read as an image: ")
    with pytest.raises(InvalidArgumentError):
        read_parameters(path)


def test_hostile_images_take_neither_time_nor_memory(tmp_path: Path) -> None:
    """Rejected: 200 MB and a second. The largest that are read: 16 bytes a pixel."""
    paths = []
    for number, (content, _) in enumerate(HOSTILE.values()):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(content)
    side = int(MAX_PIXELS**0.5)
    (tmp_path / "grey.png").write_bytes(png(side, side, kind=0))
    load = "sdexport.runtime.images.loading:load_image"
    found = outcomes([(load, path) for path in (*paths, tmp_path / "grey.png")])
    for each in found[:-1]:
        assert_malformed(each, "InvalidArgumentError")
    assert found[-1].kind == "" and MALFORMED_MB < found[-1].grown_mb < LARGEST_MB


@pytest.mark.parametrize("kind", FORMATS)
def test_first_frame_is_read_in_every_format(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(np.full((24, 24, 3), (200, 40, 40), np.uint8))
    path = tmp_path / "no-suffix"
    several = {"save_all": True, "append_images": [Image.new("RGB", (24, 24), "blue")] * 3}
    options = several if kind in ("GIF", "WEBP", "AVIF", "TIFF", "PNG") else {}
    path.write_bytes(encoded(kind, image, **options))
    found = load_image(path)
    assert found.size == (24, 24)
    red, green, blue = (int(channel.mean()) for channel in np.moveaxis(np.asarray(found), 2, 0))
    assert red > 150 and green < 100 and blue < 100


def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not for a Pillow image that was opened and is decoded only now."""

    def started(*arguments: object, **_: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)
    path = tmp_path / "photo.eps"
    path.write_bytes(EPS)
    with Image.open(path) as opened:
        assert opened.format == "EPS"
        with pytest.raises(InvalidArgumentError, match="format, EPS, is none of PNG"):
            load_image(opened)
        with pytest.raises(InvalidArgumentError, match="format, EPS, is none of PNG"):
            load_masks(opened)


def test_a_loaded_image_of_another_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.ppm"
    path.write_bytes(encoded("PPM"))
    with Image.open(path) as opened:
        with pytest.raises(InvalidArgumentError, match=r"format, PPM, .* call its load"):
            load_image(opened)
        opened.load()
        assert load_image(opened).getpixel((0, 0)) == (255, 0, 0)


def test_limits_do_not_depend_on_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "photo.png"
    path.write_bytes(png(9000, 9000))
    with pytest.raises(InvalidArgumentError, match="9000x9000 pixels, and at most 67,108,864"):
        load_image(path)
    with Image.open(path) as opened, pytest.raises(InvalidArgumentError, match="9000x9000"):
        load_image(opened)


def test_limit_counts_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "MAX_PIXELS", 64)
    for kind in FORMATS:
        (tmp_path / kind).write_bytes(encoded(kind))
        assert load_image(tmp_path / kind).size == (8, 8)
        (tmp_path / kind).write_bytes(encoded(kind, Image.new("RGB", (9, 8))))
        with pytest.raises(InvalidArgumentError, match="9x8 pixels, and at most 64"):
            load_image(tmp_path / kind)
    assert load_image(np.zeros((9, 9, 3), np.uint8)).size == (9, 9)


def test_tiff_compressions(tmp_path: Path) -> None:
    path = tmp_path / "photo.tiff"
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "raw"):
        Image.new("RGB", (8, 8), "red").save(path, compression=compression)
        assert open_image(path, "image")[0].size == (8, 8)
    try:
        Image.new("RGB", (8, 8)).save(path, compression="lzma")
    except OSError:
        pytest.skip("Pillow's TIFF library here has no LZMA")
    with pytest.raises(InvalidArgumentError, match="TIFF compression lzma is not read"):
        load_image(path)
