"""Images in requests: base64 or data URLs, decoded within limits. Nothing is fetched or opened."""

from __future__ import annotations

import base64
import binascii
import functools
import re
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import anyio
from anyio.lowlevel import RunVar
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.images.loading import image_of
from sdexport.server.jobs import Job
from sdexport.server.server_errors import QueueFullError
from sdexport.server.server_settings import ServerSettings

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_DATA_URL = re.compile(r"data:image/[\w.+-]{1,32};base64,", re.IGNORECASE | re.ASCII)
_SPACE = re.compile(r"\s+")
_AT_ONCE = 2
"""Requests whose images are decoded at the same time."""
_PIXEL_BYTES = 4
"""Bytes of a decoded pixel at most."""
_LIMITER: RunVar[anyio.CapacityLimiter] = RunVar("images that are decoded")  # of an event loop


class ImageBudget:
    """Bytes of the input images of all requests of a server; safe to use from several threads.

    Args:
      most: bytes. One request alone may have more.
      retry_after: seconds after which a request that found no room may come again.
    """

    def __init__(self, most: int, retry_after: Callable[[], int] = lambda: 1) -> None:
        self._most, self._retry_after = most, retry_after
        self._lock = threading.Lock()
        self.held = 0

    def reserve(self, size: int, own: int) -> None:
        """Take bytes for a request that has `own` bytes already.

        Raises: QueueFullError: other requests have too many.
        """
        with self._lock:
            others = self.held - own
            if others and self.held + size > self._most:
                reason = f"other requests hold {others:,} bytes of images"
                raise QueueFullError(reason, self._retry_after())
            self.held += size

    def release(self, size: int) -> None:
        """Give bytes back."""
        with self._lock:
            self.held -= size


class RequestImages:
    """Decodes the input images of one request; each has room before it is decoded.

    A context manager: the room is given back at its end, or at the end of the job of `keep_for`.

    Args:
      settings: limit the pixels of all images.
      budget: of the server; default one of this request alone.
    """

    def __init__(self, settings: ServerSettings, budget: ImageBudget | None = None) -> None:
        self.settings = settings
        self._budget = budget or ImageBudget(settings.max_held)
        self._pixels, self._is_kept = 0, False

    def __enter__(self) -> RequestImages:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_kept:
            self._release()

    def read(self, content: bytes, name: str) -> Image.Image:
        """The image in the bytes of a file.

        Raises: InvalidArgumentError: see image_of; more pixels than a request may have.
          QueueFullError: the images of other requests leave no room.
        """
        return image_of(content, name, self.settings.max_input_pixels, self._admit)

    def keep_for(self, job: Job) -> None:
        """Keep the room until a job is over."""
        self._is_kept = True
        job.completed.add_done_callback(lambda _: self._release())

    def _admit(self, pixels: int) -> None:
        total, most = self._pixels + pixels, self.settings.max_input_pixels
        if total > most:
            raise InvalidArgumentError(
                f"the input images have {total:,} pixels or more; at most {most:,} are read in a "
                "request"
            )
        self._budget.reserve(pixels * _PIXEL_BYTES, self._pixels * _PIXEL_BYTES)
        self._pixels = total

    def _release(self) -> None:
        pixels, self._pixels = self._pixels, 0
        self._budget.release(pixels * _PIXEL_BYTES)


def decoded_image(text: Any, name: str, images: RequestImages) -> Image.Image:
    """The image of a base64 text or data URL.

    Args:
      name: what a message calls it.
      images: decodes it.
    Raises: InvalidArgumentError: anything else, such as a path or an address; no image; too large.
      QueueFullError: see RequestImages.read.
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
    return images.read(content, name)


def decoded_images(value: Any, name: str, images: RequestImages) -> Any:
    """One image, or a list of them."""
    if not isinstance(value, list):
        return decoded_image(value, name, images)
    most = images.settings.max_images
    if len(value) > most:
        raise InvalidArgumentError(f"{name}: at most {most} images in a request")
    return [decoded_image(each, name, images) for each in value]


async def in_decoding_thread(
    function: Callable[_Arguments, _Result],
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> _Result:
    """Call a function that decodes images outside of the event loop, few of them at a time."""
    limiter = _LIMITER.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        _LIMITER.set(limiter)
    call = functools.partial(function, *args, **kwargs)
    return await anyio.to_thread.run_sync(call, limiter=limiter)
