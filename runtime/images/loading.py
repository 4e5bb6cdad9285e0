"""Input images: loaded from files, Pillow images or arrays, as 8-bit RGB."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdexport.engines.array_files import read_array
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.guarded_files import IMAGE_LIMIT, open_guarded
from sdexport.engines.messages import one_line, shown
from sdexport.runtime.images.image_limits import (
    FORMATS,
    check_file,
    check_given,
    check_opened,
    format_of,
)
from sdexport.runtime.images.pixel_levels import ArrayLike, split_batch, to_array, to_levels

ImageInput = str | Path | Image.Image | ArrayLike
"""A file, a Pillow image of any mode, or an array of pixels."""
ImageSources = ImageInput | Sequence[ImageInput]
"""One image or several; an array may hold several images too."""
_log = logging.getLogger(__name__)


def load_images(source: ImageSources, name: str = "image") -> list[Image.Image]:
    """Load one image or several as 8-bit RGB, rotated as their EXIF orientation says.

    Files and Pillow images: alpha is dropped, as by diffusers, with a warning if a pixel is
    transparent. Of an animation the first frame is used. Integers of 16 bits are scaled from
    0..65535.

    Arrays: see `split_batch` for the shapes and `to_levels` for the values.

    Args:
      name: what an error message calls the argument.
    Raises:
      FileNotFoundError: there is no such file.
      InvalidArgumentError: a file that cannot be read as an image, is of another format than
        FORMATS or beyond a limit of image_limits; an array of another shape or with other values;
        an empty list.
    """
    return [image for each in listed(source, name) for image in _load(each, name)]


def load_image(source: ImageInput) -> Image.Image:
    """Load a single image; see `load_images`."""
    images = load_images(source)
    if len(images) != 1:
        raise InvalidArgumentError(f"image: expected one image, got {len(images)}")
    return images[0]


def listed(source: ImageSources, name: str) -> list[ImageInput]:
    """The sources of a list, or one source as a list.

    Raises: InvalidArgumentError: an empty list.
    """
    if not isinstance(source, (list, tuple)):
        return [source]  # type: ignore[list-item]
    if not source:
        raise InvalidArgumentError(f"{name}: expected at least one image, got an empty list")
    return list(source)


def _load(source: ImageInput, name: str) -> list[Image.Image]:
    if isinstance(source, Image.Image | str | Path):
        image, called = open_image(source, name)
        return [to_rgb(image, called)]
    pixels = to_array(checked_source(source, name), name)
    parts = split_batch(pixels, name)
    if pixels.dtype != np.uint8:  # the range is that of the whole batch
        parts = split_batch(to_levels(pixels, name, signed=True), name)
    return [to_rgb(Image.fromarray(np.ascontiguousarray(each)), name) for each in parts]


def checked_source(source: object, name: str) -> ArrayLike:
    """The source, if it is an array.

    Raises: InvalidArgumentError: it is not.
    """
    if not isinstance(source, ArrayLike) or isinstance(source, np.generic):
        raise InvalidArgumentError(
            f"{name}: expected a file, a Pillow image or an array, got {shown(source)}"
        )
    return source


def open_image(source: str | Path | Image.Image, name: str) -> tuple[Image.Image, str]:
    """The pixels of a file's first frame or of a Pillow image, upright, in their own mode.

    Returns: the image, and what an error message calls it.
    Raises: FileNotFoundError: no such file. InvalidArgumentError: it cannot be read, is of another
      format than FORMATS, or beyond a limit of image_limits.
    """
    if isinstance(source, Image.Image):
        called = f"{name} of mode {source.mode}"
        try:
            check_given(source)
        except ValueError as error:
            raise _unreadable(called, error) from error
        return _upright(source, called), called
    with opened_file(source) as opened:
        return _upright(opened, str(source)), str(source)


def array_file(source: object) -> np.ndarray | None:
    """The array in a file that ends in .npy; None for any other source.

    Raises: FileNotFoundError: no such file. InvalidArgumentError: no array, or too large.
    """
    if not isinstance(source, str | Path) or Path(source).suffix.lower() != ".npy":
        return None
    try:
        return read_array(Path(source), error=InvalidArgumentError, limit=IMAGE_LIMIT)
    except FileNotFoundError:
        raise FileNotFoundError(f"no array at {source}") from None


@contextmanager
def opened_file(source: str | Path) -> Iterator[Image.Image]:
    """An image file that is checked and not decoded yet; closed afterwards.

    Raises: see open_image.
    """
    path = Path(source)
    try:
        file = open_guarded(path, error=InvalidArgumentError, limit=IMAGE_LIMIT)
    except FileNotFoundError:
        hint = "; addresses are not opened, download it" if ":/" in str(source) else ""
        raise FileNotFoundError(f"no image at {source}{hint}") from None
    with file, _opened(file, str(source)) as opened:
        yield opened


def image_of(
    content: bytes,
    name: str,
    most_pixels: int | None = None,
    admit: Callable[[int], None] = lambda pixels: None,
) -> Image.Image:
    """The image in the bytes of a file, as `open_image` returns that of a file.

    Args:
      most_pixels: a smaller limit than that of image_limits.
      admit: called with the number of pixels before they are decoded; it may raise.
    Raises: InvalidArgumentError: see open_image. What `admit` raises.
    """
    with io.BytesIO(content) as file, _opened(file, name) as opened:
        if most_pixels is not None and opened.width * opened.height > most_pixels:
            raise InvalidArgumentError(
                f"{name}: {opened.width}x{opened.height} pixels; at most {most_pixels:,} are read"
            )
        admit(opened.width * opened.height)
        return _upright(opened, name)


@contextmanager
def _opened(file: BinaryIO, called: str) -> Iterator[Image.Image]:
    """The image of an open file, closed afterwards; see opened_file."""
    try:
        opened = open_checked(file)
    except UnidentifiedImageError as error:
        raise InvalidArgumentError(
            f"{called} cannot be read as an image: unknown format; save it as PNG, JPEG or WebP"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise anything from OSError to struct.error
        raise _unreadable(called, error) from error
    with opened:
        yield opened


def open_checked(file: BinaryIO, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Let Pillow open a file of one of `formats`, which its content says, within the limits.

    Raises: UnidentifiedImageError: another format. ValueError: beyond a limit. Anything else that
      Pillow raises for a damaged file.
    """
    file.seek(0)
    kind = format_of(file.read(16))
    if kind is None or kind not in formats:
        raise UnidentifiedImageError(f"expected {', '.join(formats)}")
    check_file(file, kind)
    opened = Image.open(file, formats=(kind,))
    check_opened(opened)
    return opened


def _upright(image: Image.Image, called: str) -> Image.Image:
    """A copy of the image with its pixels, rotated as EXIF says."""
    if not all(image.size):
        raise InvalidArgumentError(f"{called}: no pixels, its size is {image.width}x{image.height}")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow reads the pixels only now; see open_checked
        raise _unreadable(called, error) from error
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  damaged EXIF data, in as many ways as pixels
        _log.warning("%s: its EXIF orientation cannot be read: %s", called, one_line(error, 120))
        return image.copy()


def to_rgb(image: Image.Image, called: str) -> Image.Image:
    """An image of any mode as 8-bit RGB; see `load_images`.

    Args:
      called: what a message calls it.
    Raises: InvalidArgumentError: a mode that cannot be converted.
    """
    if image.mode in ("I", "F"):
        pixels = np.asarray(image)
        if image.mode == "I":
            pixels = np.clip(pixels, 0, 65535)
        return Image.fromarray(to_levels(pixels, called, signed=True)).convert("RGB")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.uint32)
        levels += 128  # rounds to the nearest
        levels //= 257
        image = Image.fromarray(levels.astype(np.uint8))
    try:
        image = with_alpha(image)
        if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
            _log.warning(
                "%s has transparent pixels; their stored colours are used, as by diffusers", called
            )
        return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # modes without a conversion
        raise _unreadable(called, error) from error


def with_alpha(image: Image.Image) -> Image.Image:
    """In mode RGBA if it has transparency of any kind, else as it is."""
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGBA") if image.has_transparency_data else image


def _unreadable(called: str, error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(f"{called} cannot be read as an image: {one_line(error)}")
