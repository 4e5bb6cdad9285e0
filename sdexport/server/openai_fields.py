"""The fields of OpenAI's image requests, and the library's settings among them.

A field is used, may have any value that changes nothing here, or is rejected by name. Every other
name is that of an argument of a pipeline call.

Source: the parameters of images.generate and images.edit in the `openai` package 3.57.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.json_text import parse_json
from sdexport.engines.messages import shown

OUTPUT_FORMATS = ("png", "jpeg", "webp")
URL, BASE64 = "url", "b64_json"
MOST_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_AUTO = (None, "auto")
WITHOUT_EFFECT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "background": ((*_AUTO, "opaque"), "images are opaque"),
    "quality": ((*_AUTO, "standard"), "set num_inference_steps instead (extra_body)"),
    "style": ((None,), "describe the style in the prompt"),
    "moderation": ((*_AUTO, "low"), "choose auto or low"),
    "complexity": ((None,), "set num_inference_steps instead (extra_body)"),
    "input_fidelity": ((None,), "set strength instead (extra_body)"),
    "frame_count": ((None,), "animations are not supported"),
    "frame_duration_ms": ((None,), "animations are not supported"),
    "svg": ((None,), "vector images are not supported"),
    "markup": ((None,), "draw into the image, or give a mask"),
}
"""Field -> the values that change nothing, and what to do instead of another one."""
INSTEAD = {
    "num_images_per_prompt": "use n",
    "output_type": "use output_format",
    "return_dict": "the response is always an object",
    "mask_image": "give the file mask of images.edit",
}
"""Arguments of a pipeline call for which OpenAI has a field."""
TEXTS = (
    *("prompt_2", "negative_prompt", "negative_prompt_2", "schedule", "prompt_style"),
    *("resize_mode", "noise_device", "scheduler"),
)
"""Arguments that are texts; in a form they are taken as they are."""
USED = (
    *("prompt", "model", "n", "size", "response_format", "output_format", "output_compression"),
    *("stream", "partial_images", "user", "safety_identifier"),
)
FIELDS = (*USED, *WITHOUT_EFFECT, "image", "mask")
_IN_FORMS = ("n", "output_compression", "stream", "partial_images")
"""Fields that are no texts."""


@dataclass(frozen=True)
class ImageFields:
    """The fields of a request, checked.

    Attributes:
      arguments: of a pipeline call.
      output_format: one of OUTPUT_FORMATS. quality: 1 to 100; None for PNG.
      response_format: URL or BASE64.
      stream: whether events are sent. partial_images: how many of them are previews.
      size: the requested width and height; None for the default.
      user: what identifies the end user; it is repeated in the response.
    """

    model: str | None
    arguments: dict[str, Any]
    output_format: str = "png"
    quality: int | None = None
    response_format: str = BASE64
    stream: bool = False
    partial_images: int = 0
    size: tuple[int, int] | None = None
    user: str | None = None


def checked_fields(body: Mapping[str, Any]) -> ImageFields:
    """The fields of a request.

    Args:
      body: values by name; image and mask are handled by the caller.
    Raises: InvalidArgumentError: a field that is not supported, or a value that is out of range.
    """
    for name, (values, instead) in WITHOUT_EFFECT.items():
        if body.get(name) not in values:
            raise InvalidArgumentError(f"{name}: {shown(body[name])} is not supported: {instead}")
    arguments = {
        name: value for name, value in body.items() if name not in FIELDS and value is not None
    }
    for name, instead in INSTEAD.items():
        if name in arguments:
            raise InvalidArgumentError(f"{name}: {instead}")
    arguments["prompt"] = _text(body, "prompt")
    if arguments["prompt"] is None:
        raise InvalidArgumentError("prompt: it is missing")
    arguments["num_images_per_prompt"] = _whole(body, "n", 1, 10) or 1
    size = _size(body.get("size"), arguments)
    if size is not None:
        arguments["width"], arguments["height"] = size
    output_format = _one_of(body, "output_format", OUTPUT_FORMATS)
    stream = _flag(body, "stream")
    response_format = _one_of(body, "response_format", (BASE64, URL))
    partial_images = _whole(body, "partial_images", 0, MOST_PARTIAL_IMAGES) or 0
    if partial_images and not stream:
        raise InvalidArgumentError("partial_images: they are sent in a stream; set stream")
    if stream and response_format == URL:
        raise InvalidArgumentError("response_format: a stream holds images as b64_json")
    users = [_text(body, name) for name in ("safety_identifier", "user")]
    return ImageFields(
        _text(body, "model"),
        arguments,
        output_format,
        _quality(body, output_format),
        response_format,
        stream,
        partial_images,
        size,
        next((user for user in users if user), None),
    )


def form_values(items: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The values of a form as JSON would have them.

    The names of the `openai` package's forms are understood: `a[b]` is an entry of an object, and
    `a[]` one of a list. Numbers and flags are read, and JSON where an argument is no text.

    Raises: InvalidArgumentError: a name that is there twice.
    """
    found: dict[str, Any] = {}
    for name, text in items:
        base, bracket, rest = name.partition("[")
        value = text if base in TEXTS or (base in FIELDS and base not in _IN_FORMS) else _read(text)
        if base == "scheduler" and text.lstrip().startswith("{"):
            value = _read(text)
        if not bracket:
            if name in found:
                raise InvalidArgumentError(f"{shown(name)}: it is there twice")
            found[name] = value
        elif rest == "]":
            _nested(found, base, list).append(value)
        else:
            inner, key = _nested(found, base, dict), rest.removesuffix("]")
            if key in inner:
                raise InvalidArgumentError(f"{shown(name)}: it is there twice")
            inner[key] = value
    return found


def _nested(found: dict[str, Any], name: str, kind: type) -> Any:
    inner = found.setdefault(name, kind())
    if not isinstance(inner, kind):
        raise InvalidArgumentError(f"{shown(name)}: it is there in two forms")
    return inner


def _read(text: str) -> Any:
    """A value of JSON; anything else is a text."""
    if len(text) > 100_000:
        return text
    try:
        value = parse_json(text, strict=True)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return value
    except (ValueError, RecursionError):
        return text


def _size(size: object, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    if size in _AUTO:
        return None
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        raise InvalidArgumentError(
            f'size: expected "auto" or a size such as "512x512", got {shown(size)}'
        )
    if "width" in arguments or "height" in arguments:
        raise InvalidArgumentError("size: give either size, or width and height")
    return int(found[1]), int(found[2])


def _quality(body: Mapping[str, Any], output_format: str) -> int | None:
    """Of JPEG and WebP; 100 is OpenAI's default, and 0 the least that the encoders have, 1."""
    given = _whole(body, "output_compression", 0, 100)
    if output_format == "png":
        if given not in (None, 100):
            raise InvalidArgumentError(
                "output_compression: it is for jpeg and webp; set output_format"
            )
        return None
    return 100 if given is None else max(given, 1)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidArgumentError(f"{name}: expected a text, got {shown(value)}")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False) or isinstance(value, (int, float)) is not isinstance(
        value, bool
    ):
        raise InvalidArgumentError(f"{name}: expected true or false, got {shown(value)}")
    return bool(value)


def _whole(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is not None and not (type(value) is int and low <= value <= high):
        raise InvalidArgumentError(
            f"{name}: expected a whole number from {low} to {high}, got {shown(value)}"
        )
    return value


def _one_of(body: Mapping[str, Any], name: str, values: Sequence[str]) -> str:
    value = body.get(name)
    if value is None:
        return values[0]
    if value not in values:
        raise InvalidArgumentError(
            f"{name}: expected {', '.join(values[:-1])} or {values[-1]}, got {shown(value)}"
        )
    return str(value)
