"""Images in requests: base64 or data URLs, decoded within limits. Nothing is fetched or opened."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import anyio
from anyio.lowlevel import RunVar
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.images.loading import image_of
from sdexport.server.server_settings import ServerSettings

_DATA_URL = re.compile(r"data:image/[\w.+-]{1,32};base64,", re.IGNORECASE | re.ASCII)
_SPACE = re.compile(r"\s+")
_AT_ONCE = 2
"""Images that are decoded at the same time."""
_LIMITER: RunVar[anyio.CapacityLimiter] = RunVar("images that are decoded")  # of an event loop


def decoded_image(text: Any, name: str, settings: ServerSettings) -> Image.Image:
    """The image of a base64 text or data URL.

    Args:
      name: what a message calls it.
    Raises: InvalidArgumentError: anything else, such as a path or an address; no image; too large.
    """
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{name}: expected an image as base64 or as a data URL")
    found = _DATA_URL.match(text)
    encoded = text[found.end() :] if found else text
    try:
        content = base64.b64decode(_SPACE.sub("", encoded), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgumentError(
            f"{name}: expected an image as base64 or as a data URL; no address or path is opened"
        ) from None
    return image_of(content, name, settings.max_input_pixels)


def decoded_images(value: Any, name: str, settings: ServerSettings) -> Any:
    """One image, or a list of them."""
    if not isinstance(value, list):
        return decoded_image(value, name, settings)
    if len(value) > settings.max_images:
        raise InvalidArgumentError(f"{name}: at most {settings.max_images} images in a request")
    return [decoded_image(each, name, settings) for each in value]


async def decode_in_thread(value: Any, name: str, settings: ServerSettings) -> Any:
    """`decoded_images` outside of the event loop."""
    limiter = _LIMITER.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        _LIMITER.set(limiter)
    return await anyio.to_thread.run_sync(decoded_images, value, name, settings, limiter=limiter)
