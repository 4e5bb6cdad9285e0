"""Image files that carry the settings of their image, and say that a model made it."""

from __future__ import annotations

import io
import json
import logging
import struct
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.files import write_atomically
from sdexport.engines.messages import one_line, plain, shown
from sdexport.runtime import checks
from sdexport.runtime.images import xmp
from sdexport.runtime.images.embedded_text import (
    EXIF_IFD,
    JSON_KEY,
    TEXT_KEY,
    USER_COMMENT,
    embedded_texts,
)
from sdexport.runtime.images.parameters import Parameters

_log = logging.getLogger(__name__)

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Pillow's name of the format for each suffix."""
QUALITY = 90
"""Of JPEG and WebP files, where none is given."""
_LONG, _UNDEFINED = 4, 7  # types of EXIF values
_SEGMENT = 65_000
"""Bytes that one segment of a JPEG file holds, rounded down."""


class GeneratedImage(Image.Image):
    """A Pillow image whose settings `save` writes into PNG, JPEG and WebP files.

    Pillow's own methods such as `copy` and `resize` return plain images: those keep the settings in
    `info`, from which `save_image` writes them.
    """

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002
        """Write the image as Pillow does, with its settings; see PIL.Image.Image.save.

        A PNG, JPEG or WebP file is written atomically, as `save_image` does.
        """
        wanted = _known_format(format or FORMATS.get(Path(_name(fp)).suffix.lower()))
        if wanted not in FORMATS.values():
            super().save(fp, format, **params)
            return
        options = _metadata(self, wanted, mark=True) | params
        if not isinstance(fp, (str, PathLike)):
            super().save(fp, format, **options)
            return
        content = io.BytesIO()
        super().save(content, wanted, **options)
        write_atomically(Path(fp), content.getvalue())


def to_image(pixels: np.ndarray, parameters: Parameters | None = None) -> Image.Image:
    """Turn pixels into a Pillow image.

    Args:
      pixels: (H, W, 3) uint8.
      parameters: written to `image.info`: as AUTOMATIC1111's text under "parameters", and as JSON
        under "sdexport".
    """
    image = Image.fromarray(pixels)
    if parameters is not None:
        image.info[TEXT_KEY] = str(parameters)
        image.info[JSON_KEY] = parameters.to_json()
        image.__class__ = GeneratedImage
    return image


def save_image(
    image: Image.Image,
    path: str | PathLike[str] | BinaryIO,
    *,
    format: str | None = None,  # noqa: A002
    quality: int | None = None,
    lossless: bool = False,
    mark: bool = True,
) -> None:
    """Write an image to a PNG, JPEG or WebP file, together with its settings.

    The settings are those in `image.info`, as a pipeline writes them. A JPEG file holds at most
    64 KB of them; longer ones are left out, with a warning. An existing file is replaced; the write
    is atomic.

    Args:
      path: a file name that ends in .png, .jpg, .jpeg or .webp, in a folder that exists; or a
        binary file.
      format: "png", "jpeg" or "webp"; default by the name, for a file object PNG.
      quality: 1 to 100, for JPEG and WebP; default 90.
      lossless: for WebP: keep every pixel as it is.
      mark: say in the file that the image was made by a model (IPTC's DigitalSourceType).
    Raises:
      InvalidArgumentError: another suffix or format; the format cannot hold the image.
      OSError: the folder is missing or cannot be written.
    Example:
        >>> from PIL import Image
        >>> from sdexport import save_image
        >>> image = Image.new("RGB", (64, 64), "red")
        >>> image.info["parameters"] = "a red square"
        >>> save_image(image, "square.png")
        >>> Image.open("square.png").text["parameters"]
        'a red square'
    """
    if not isinstance(image, Image.Image):
        raise InvalidArgumentError(f"image: expected a Pillow image, got {shown(image)}")
    wanted = image_format(path, format)
    how = _encoder_options(wanted, quality, lossless=lossless)
    saved_as = {"format": wanted.lower(), **how, "mark": mark}
    metadata = _metadata(image, wanted, mark=mark, saved_as=saved_as, name=_name(path))
    # Pillow's encoders seek, which not every file can, and hide that a disk is full
    content = io.BytesIO()
    _encode(image, content, wanted, how | metadata)
    if isinstance(path, (str, PathLike)):
        write_atomically(Path(path), content.getvalue())
        return
    try:
        path.write(content.getvalue())
    except (AttributeError, TypeError) as error:
        raise InvalidArgumentError(
            f"path: expected a file name or a binary file, got {shown(path)}"
        ) from error


def check_output(
    path: Any, *, quality: int | None = None, lossless: bool = False, mark: bool = True
) -> None:
    """Check the arguments of `save_image` before there is an image.

    Raises: InvalidArgumentError: as `save_image`.
    """
    _encoder_options(image_format(path), quality, lossless=lossless)


def image_format(path: Any, stated: str | None = None) -> str:
    """The format of an image file: "PNG", "JPEG" or "WEBP".

    Args:
      path: a name, whose suffix says it; or a file object.
      stated: instead, in upper or lower case.
    Raises: InvalidArgumentError: unknown, or the suffix is that of another format.
    """
    name = _name(path)
    by_name = FORMATS.get(Path(name).suffix.lower())
    if stated is None:
        if by_name is None and isinstance(path, (str, PathLike)):
            raise InvalidArgumentError(
                f"{plain(name, 300)}: use a name that ends in .png, .jpg, .jpeg or .webp"
            )
        return by_name or "PNG"
    wanted = _known_format(stated)
    if wanted not in FORMATS.values():
        raise InvalidArgumentError(f"unknown format {shown(stated)}; choose png, jpeg or webp")
    if by_name not in (None, wanted):
        raise InvalidArgumentError(f"{name}: the name is that of {by_name}, the format is {wanted}")
    return wanted


def _known_format(stated: object) -> str:
    wanted = stated.upper() if isinstance(stated, str) else ""
    return "JPEG" if wanted == "JPG" else wanted


def _encoder_options(wanted: str, quality: int | None, *, lossless: bool) -> dict[str, Any]:
    """The options of Pillow's encoder.

    Raises: InvalidArgumentError: an option that the format does not have.
    """
    if lossless and (wanted != "WEBP" or quality is not None):
        what = f"{wanted} has no such option" if wanted != "WEBP" else "then there is no quality"
        raise InvalidArgumentError(f"lossless is for WebP files, without a quality; {what}")
    if quality is not None:
        if wanted == "PNG":
            raise InvalidArgumentError("quality is for JPEG and WebP; PNG keeps every pixel")
        checks.integer("quality", quality, 1, 100)
    if wanted == "PNG":
        return {}
    return {"lossless": True} if lossless else {"quality": int(quality or QUALITY)}


def _metadata(
    image: Image.Image,
    wanted: str,
    *,
    mark: bool,
    saved_as: Mapping[str, Any] | None = None,
    name: str = "",
) -> dict[str, Any]:
    """The arguments of Pillow's `save` that write an image's settings into a file.

    Args:
      wanted: "PNG", "JPEG" or "WEBP".
      saved_as: recorded with the settings, to write the same file again.
    """
    try:
        text, settings = embedded_texts(image)
    except ValueError:  # of another program
        text, settings = None, None
    if text is not None:
        text = text.encode("utf-8", "replace").decode()  # without lone surrogates
    settings = _with_file(settings, saved_as)
    source_type = _source_type(settings) if mark else None
    if wanted == "PNG":
        return {"pnginfo": _png_texts(text, settings, xmp.packet(source_type=source_type))}
    found = {
        "exif": _user_comment(text),
        "xmp": xmp.packet(source_type=source_type, settings=settings),
    }
    if wanted == "JPEG" and max(map(len, found.values())) > _SEGMENT:
        _log.warning(
            "%s: a JPEG file cannot hold settings of more than 64 KB, so it is saved without them; "
            "PNG and WebP files can",
            name or "image",
        )
        found = {"exif": b"", "xmp": xmp.packet(source_type=source_type)}
    return {key: value for key, value in found.items() if value}


def _png_texts(text: str | None, settings: str | None, packet: bytes) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    if text is not None:
        chunks.add_text(TEXT_KEY, text)
    if settings is not None:
        chunks.add_text(JSON_KEY, settings)
    if packet:
        chunks.add_itxt("XML:com.adobe.xmp", packet.decode())
    return chunks


def _user_comment(text: str | None) -> bytes:
    """EXIF data with a text as UTF-16, as AUTOMATIC1111 writes it.

    Pillow would write it with the type BYTE, which other readers do not take for a comment.
    """
    if text is None:
        return b""
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    first, second = 8, 26  # where the two directories of one entry each begin
    directory, ends = ">HHHLLL", 18
    return b"".join(
        (
            b"Exif\0\0MM\0*" + struct.pack(">L", first),
            struct.pack(directory, 1, EXIF_IFD, _LONG, 1, second, 0),
            struct.pack(directory, 1, USER_COMMENT, _UNDEFINED, len(comment), second + ends, 0),
            comment,
        )
    )


def _with_file(settings: str | None, saved_as: Mapping[str, Any] | None) -> str | None:
    """The settings as JSON in ASCII, and how the file is written."""
    if settings is None:
        return None
    try:
        values = json.loads(settings)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    return json.dumps(values | ({"file": dict(saved_as)} if saved_as else {}))


def _source_type(settings: str | None) -> str:
    """IPTC's term: edited, if the image was made from another one."""
    edited = settings is not None and json.loads(settings).get("image")
    return xmp.EDITED if edited else xmp.GENERATED


def _encode(image: Image.Image, file: BinaryIO, wanted: str, options: Mapping[str, Any]) -> None:
    """Write the content of an image file.

    Raises: InvalidArgumentError: the format cannot hold the image. OSError: it cannot be written.
    """
    try:
        Image.Image.save(image, file, format=wanted, **options)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidArgumentError(
            f"image of mode {image.mode}, {image.width}x{image.height}, cannot be written as "
            f"{wanted}: {one_line(error)}"
        ) from error


def _name(path: Any) -> str:
    """The name of a file or file object, which may have none."""
    name = path if isinstance(path, (str, PathLike)) else getattr(path, "name", "")
    return str(name) if isinstance(name, (str, PathLike)) else ""
