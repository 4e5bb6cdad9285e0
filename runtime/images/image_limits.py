"""Limits of image files of unknown origin, checked in their headers before Pillow decodes them.

A few bytes of such a file may ask for much memory, or for hours of work. Only structure is checked
here, and only as far as the first image; what the pixels are is left to Pillow.

Source: PNG (third edition) section 5; ITU-T T.81 (JPEG) annex B; GIF89a; TIFF 6.0 section 2; the
WebP container specification; ISO/IEC 14496-12 section 4.3 (AVIF).
"""

from __future__ import annotations

import os
import re
import struct
from typing import Any, BinaryIO

MAX_PIXELS = 2**26
"""Of one image: 67 million. Decoding takes up to 16 bytes of memory for each pixel."""
MAX_SCANS = 64
"""Of a JPEG file; each is a pass over the whole image. Usual are 10."""
_MAX_PARTS = 4096
"""Parts of a file that hold no pixels: chunks, segments or blocks."""
_MAX_PIXEL_PARTS = 2**18
_MAX_VALUES = 2**20
"""Numbers in one field of a TIFF directory, such as the places of its strips."""
_TIFF_COMPRESSIONS = {
    *("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg"),
    *("tiff_ccitt", "group3", "group4"),
}
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_BYTES_OF_TYPE |= {13: 4, 16: 8, 17: 8, 18: 8}
_TEXT_TYPES = (1, 2, 7)
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_JPEG_AFTER_SCAN = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_PREFIXES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_AVIF_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
"""The formats that are read, under Pillow's names; none of them starts another program."""
_OPENED_AS = {*FORMATS, "MPO"}
"""Pillow calls a JPEG file with further images MPO."""


def format_of(head: bytes) -> str | None:
    """The format of a file that begins with `head`, 16 bytes or more; None if it is another."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS:
        return "AVIF"
    return next((name for prefix, name in _PREFIXES.items() if head.startswith(prefix)), None)


def check_file(file: BinaryIO, kind: str) -> None:
    """Check the structure of a file of one of FORMATS; its position is 0 afterwards.

    Raises: ValueError: it is beyond a limit.
    """
    file.seek(0)
    if check := _CHECKS.get(kind):
        check(file)
    file.seek(0)


def check_opened(image: Any) -> None:
    """Check what Pillow read in an image's header, before it decodes any pixels.

    Raises: ValueError: too many pixels, a format that is not read, or a compression that is not.
    """
    check_size(*image.size)
    kind = getattr(image, "format", None)
    if kind == "TIFF" and hasattr(image, "tag_v2") and getattr(image, "tile", None):
        _check_tiff_pixels(image)


def check_size(width: int, height: int) -> None:
    """Raises: ValueError: no pixels, or more than MAX_PIXELS."""
    if width < 1 or height < 1:
        raise ValueError(f"no pixels, its size is {width}x{height}")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"it has {width}x{height} pixels, and at most {MAX_PIXELS:,} are read; "
            "make it smaller, or open it yourself and give its pixels as an array"
        )


def check_given(image: Any) -> None:
    """Check a caller's image that Pillow has opened but not decoded: the format decides what runs.

    Images in memory are not limited.

    Raises: ValueError: a format that is not among FORMATS, or see check_opened.
    """
    if not hasattr(image, "tile") or _is_decoded(image):
        return
    if image.format not in _OPENED_AS:
        raise ValueError(
            f"its format, {image.format}, is none of {', '.join(FORMATS)}, and its pixels are not "
            "loaded; call its load() first if you trust it"
        )
    check_opened(image)


def _is_decoded(image: Any) -> bool:
    try:
        return not image.tile and image.im is not None
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  Pillow raises AssertionError before the pixels are there
        return False


def _check_png(file: BinaryIO) -> None:
    head = file.read(33)
    if head[12:16] == b"IHDR":
        check_size(*struct.unpack(">II", head[16:24]))
    others = pixels = 0
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        if head[4:] in (b"IDAT", b"fdAT", b"fcTL"):
            pixels += 1
        else:
            others += 1
        _limit_parts(others, pixels)
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)


def _check_jpeg(file: BinaryIO) -> None:
    data = file.read()
    place, scans = 2, 0
    for parts in range(_MAX_PARTS + 2):
        _limit_parts(parts)
        found = _JPEG_MARKER.search(data, place)
        if not found or found[1] == b"\xd9":
            return
        place = found.end()
        code = found[1][0]
        if code == 1 or 0xD0 <= code <= 0xD8:
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        if code in (0xC0, 0xC1, 0xC2) and len(data) >= place + 7:
            height, width = struct.unpack(">HH", data[place + 3 : place + 7])
            check_size(width, max(height, 1))
        place += length
        if code == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise ValueError(f"it has more than {MAX_SCANS} scans")
            after = _JPEG_AFTER_SCAN.search(data, place)
            place = after.start() if after else len(data)


def _check_gif(file: BinaryIO) -> None:
    head = file.read(13)
    if len(head) < 13:
        return
    check_size(*(max(side, 1) for side in struct.unpack("<HH", head[6:10])))
    file.seek(_palette(head[10]), os.SEEK_CUR)
    blocks = 0
    for parts in range(_MAX_PARTS + 2):
        _limit_parts(parts)
        kind = file.read(1)
        if kind == b"," and len(frame := file.read(9)) == 9:
            left, top, width, height = struct.unpack("<4H", frame[:8])
            check_size(max(left + width, 1), max(top + height, 1))
        if kind != b"!":
            return
        file.seek(1, os.SEEK_CUR)
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], os.SEEK_CUR)
            blocks += 1
            _limit_parts(parts, blocks)


def _palette(flags: int) -> int:
    """Bytes of a palette of GIF."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _check_webp(file: BinaryIO) -> None:
    head = file.read(30)
    if len(head) < 30:
        return
    if head[12:16] == b"VP8X":
        sides = [int.from_bytes(head[place : place + 3], "little") + 1 for place in (24, 27)]
        check_size(*sides)
    elif head[12:16] == b"VP8 ":
        check_size(*(max(side & 0x3FFF, 1) for side in struct.unpack("<HH", head[26:30])))
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)


def _check_bmp(file: BinaryIO) -> None:
    head = file.read(26)
    if len(head) == 26:
        old = head[14] == 12
        width, height = struct.unpack("<HH" if old else "<ii", head[18 : 22 if old else 26])
        check_size(width, abs(height))


def _check_tiff(file: BinaryIO) -> None:
    """The first directory: its fields do not say that they are larger than the file."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    entry = struct.Struct(order + ("HHQ8s" if big else "HHL4s"))
    file.seek(_unpack(order + ("Q" if big else "L"), head[8 if big else 4 :]))
    count = _unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    _limit_parts(count)
    total, sides = 0, {}
    for _ in range(count):
        if len(field := file.read(entry.size)) < entry.size:
            break
        tag, kind, values, value = entry.unpack(field)
        if kind in (3, 4) and values == 1:
            sides[tag] = _unpack(order + "HL"[kind - 3], value)
        total += values * _BYTES_OF_TYPE.get(kind, 0)
        if total > length or (kind not in _TEXT_TYPES and values > _MAX_VALUES):
            raise ValueError("its directory asks for more than the file can hold")
    for width, height in ((256, 257), (322, 323)):  # of the image, and of a tile
        if width in sides and height in sides:
            check_size(sides[width], sides[height])


def _unpack(layout: str, data: bytes) -> int:
    size = struct.calcsize(layout)
    if len(data) < size:
        raise ValueError("it is truncated")
    return int(struct.unpack(layout, data[:size])[0])


def _check_tiff_pixels(image: Any) -> None:
    compression = image.info.get("compression", "raw")
    if compression not in _TIFF_COMPRESSIONS:
        raise ValueError(f"TIFF compression {compression} is not read; save it with deflate or LZW")
    sides = [image.tag_v2.get(tag, 1) for tag in (322, 323)]  # of a tile, in another type
    if not all(isinstance(side, int) for side in sides):
        raise ValueError("its tiles have no size")
    check_size(*sides)


def _limit_parts(others: int, pixels: int = 0) -> None:
    if others > _MAX_PARTS or pixels > _MAX_PIXEL_PARTS:
        raise ValueError(f"it has more than {_MAX_PARTS} parts that are no pixels, or too many")


_CHECKS = {
    "PNG": _check_png,
    "JPEG": _check_jpeg,
    "GIF": _check_gif,
    "WEBP": _check_webp,
    "TIFF": _check_tiff,
    "BMP": _check_bmp,
}
