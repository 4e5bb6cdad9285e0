"""Reading the settings of an image file, which is untrusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.guarded_files import IMAGE_LIMIT, open_guarded
from sdexport.engines.messages import one_line, shown
from sdexport.runtime.images.embedded_text import embedded_texts
from sdexport.runtime.images.loading import open_checked
from sdexport.runtime.images.parameters import TYPES, Parameters
from sdexport.runtime.images.read_infotext import read_infotext
from sdexport.runtime.images.recorded_values import convert

_FORMATS = ("PNG", "JPEG", "WEBP")


def read_parameters(source: str | PathLike[str] | BinaryIO | Image.Image) -> Parameters:
    """The settings that an image was generated with.

    Images that sdexport wrote carry all of them, exact. Of other programs' images AUTOMATIC1111's
    text is read as far as it can be; `not_understood` has the rest.

    Args:
      source: a PNG, JPEG or WebP file, a binary file, or a Pillow image.
    Raises: FileNotFoundError: no such file. InvalidArgumentError: not an image, an image without
      settings, or damaged settings.
    Example:
        >>> import sdexport
        >>> with sdexport.load_pipeline("package") as pipe:
        ...     result = pipe("a red circle", seed=3, num_inference_steps=4)
        >>> sdexport.save_image(result.images[0], "circle.png")
        >>> parameters = sdexport.read_parameters("circle.png")
        >>> parameters.prompt, parameters.seed
        ('a red circle', 3)
    """
    name = str(source) if isinstance(source, (str, PathLike)) else "image"
    text, settings = _texts(source, name)
    try:
        if settings is not None:
            return from_json(settings)
        if text is not None:
            return from_infotext(text)
    except MemoryError:
        raise
    except Exception as error:  # whatever wrong values make the readers raise
        raise InvalidArgumentError(
            f"{name}: its settings are damaged: {one_line(error)}"
        ) from error
    raise InvalidArgumentError(f"{name} carries no settings")


def _texts(source: Any, name: str) -> tuple[str | None, str | None]:
    """The texts in an image; settings may come after the pixels, which are then read too."""
    if isinstance(source, Image.Image):
        return _checked(embedded_texts, source, name)
    if not isinstance(source, (str, PathLike)) and not hasattr(source, "read"):
        raise InvalidArgumentError(f"image: expected a file or a Pillow image, got {shown(source)}")
    if not isinstance(source, (str, PathLike)):
        return _checked(_read, source, name)
    try:
        file = open_guarded(Path(source), error=InvalidArgumentError, limit=IMAGE_LIMIT)
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {source}") from None
    with file:
        return _checked(_read, file, name)


def _read(file: Any) -> tuple[str | None, str | None]:
    if not (hasattr(file, "seekable") and file.seekable()):
        file = BytesIO(file.read(IMAGE_LIMIT))
    with open_checked(file, _FORMATS) as opened:
        found = embedded_texts(opened)
        if found == (None, None) and opened.format == "PNG":
            opened.load()
            found = embedded_texts(opened)
        return found


def _checked(read: Any, source: Any, name: str) -> tuple[str | None, str | None]:
    try:
        texts: tuple[str | None, str | None] = read(source)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise anything from OSError to struct.error
        raise InvalidArgumentError(
            f"{name} cannot be read as an image: {one_line(error, 200)}"
        ) from error
    return texts


def from_json(text: str) -> Parameters:
    """The settings in a JSON object, as `Parameters.to_json` writes it.

    Raises: ValueError, TypeError, RecursionError: not JSON, or values of another type.
    """
    values = json.loads(text, parse_constant=_no_constant)
    if not isinstance(values, dict):
        raise TypeError("no JSON object")
    known = {each.name for each in fields(Parameters)} - {"not_understood"}
    return _parameters(
        {key: value for key, value in values.items() if key in known},
        {key: shown(value) for key, value in values.items() if key not in known},
    )


def from_infotext(text: str) -> Parameters:
    """The settings in AUTOMATIC1111's text, as far as they are known here.

    Raises: ValueError: there are none in it.
    """
    values, not_understood = read_infotext(text)
    return _parameters(values, not_understood)


def _parameters(values: Mapping[str, Any], not_understood: Mapping[str, str]) -> Parameters:
    converted: dict[str, Any] = {"version": None}
    for name, value in values.items():
        try:
            converted[name] = convert(value, TYPES[name])
        except TypeError:
            raise TypeError(f"{name} is {shown(value)}") from None
    if not isinstance(converted.get("prompt"), str):
        raise TypeError("there is no prompt")
    found = Parameters(**converted, not_understood=not_understood)
    size, index = found.batch_size, found.batch_index
    lists = (found.prompts, found.negative_prompts, found.seeds)
    if not 0 <= index < size <= 100_000 or any(each and len(each) != size for each in lists):
        raise ValueError("the batch does not fit together")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
