"""The settings in an image file, as the texts that they are stored as; the file is untrusted."""

from __future__ import annotations

from typing import Any

from PIL import Image

from sdexport.engines.messages import one_line
from sdexport.runtime.images import xmp

TEXT_KEY = "parameters"
"""Keyword of AUTOMATIC1111's text in `image.info` and in a PNG file."""
JSON_KEY = "sdexport"
"""Keyword of the exact settings, as JSON."""
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
"""Where JPEG and WebP files have AUTOMATIC1111's text."""
MAX_CHARACTERS = 2 * 2**20
"""Of a text with settings."""
_ENCODINGS = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "ascii", b"\0" * 8: "utf-8"}


def embedded_texts(image: Image.Image) -> tuple[str | None, str | None]:
    """AUTOMATIC1111's text, and the exact settings as JSON; None for what is not there.

    Args:
      image: opened from a file, or generated.
    Raises: ValueError: a text is longer than MAX_CHARACTERS, or the EXIF data is damaged.
    """
    text, settings = _string(image.info.get(TEXT_KEY)), _string(image.info.get(JSON_KEY))
    if settings is None:
        settings = _json_in_xmp(image.info)
    if text is None:
        text = _user_comment(image)
    return text, settings


def _json_in_xmp(info: dict[Any, Any]) -> str | None:
    packet = info.get("xmp") or info.get("XML:com.adobe.xmp")
    if not isinstance(packet, (bytes, str)) or len(packet) > MAX_CHARACTERS:
        return None
    return xmp.settings_of(packet)


def _user_comment(image: Image.Image) -> str | None:
    """The text of the EXIF field UserComment."""
    if "exif" not in image.info:
        return None
    try:
        value = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's EXIF reader raises anything for damaged data
        raise ValueError(f"its EXIF data is damaged: {one_line(error)}") from error
    if isinstance(value, str):
        return _string(value)
    if not isinstance(value, bytes) or len(value) <= 8:
        return None
    encoding, comment = _ENCODINGS.get(value[:8]), value[8:]
    if encoding == "utf-16-be" and comment[1::2].count(0) > comment[::2].count(0):
        encoding = "utf-16-le"  # of programs that write the file's byte order
    return _string(comment.decode(encoding, "replace")) if encoding else None


def _string(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    if len(value) > MAX_CHARACTERS:
        raise ValueError(f"its settings have {len(value)} characters")
    return str(value)
