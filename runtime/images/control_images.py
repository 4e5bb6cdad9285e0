"""Control images of ControlNets: loaded, brought to the size that is generated, and as arrays.

Files, Pillow images and arrays of integers become 8-bit RGB and are resized with a Lanczos filter,
as diffusers' VaeImageProcessor does without normalisation. Arrays of floats keep their values and
are resized to the nearest pixels: in 0..1, or down to -1, which marks pixels that an inpainting
ControlNet does not see. An .npy file holds such an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.images.loading import (
    ImageInput,
    ImageSources,
    array_file,
    checked_source,
    listed,
    open_image,
    to_rgb,
)
from sdexport.runtime.images.pixel_levels import split_batch, to_array, to_levels
from sdexport.runtime.images.resizing import nearest, resize

NAME = "control image"
_RGB = 3
_TOLERANCE = 1e-3
"""By how much floats may leave their range, as filters do."""


@dataclass(frozen=True)
class Crop:
    """The part of an input image that is generated.

    size: (width, height) of the whole image. box: its (left, top, right, bottom).
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]


class ControlImages:
    """The control images of one ControlNet, opened.

    Args:
      source: one image for all prompts, or one for each.
    Raises: FileNotFoundError: there is no such file. InvalidArgumentError: see load_images; NaN; or
      floats in another range.
    """

    def __init__(self, source: ImageSources) -> None:
        self._images: list[Image.Image | np.ndarray] = [
            image for each in listed(source, NAME) for image in _opened(each)
        ]

    def __len__(self) -> int:
        return len(self._images)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first one in pixels."""
        first = self._images[0]
        if isinstance(first, np.ndarray):
            return first.shape[0], first.shape[1]
        return first.height, first.width

    def samples(
        self,
        width: int,
        height: int,
        channels: int,
        *,
        mode: str = "stretch",
        crops: Sequence[Crop] = (),
        count: int = 1,
    ) -> np.ndarray:
        """The images in the size that is generated, (n, channels, height, width) float32.

        Of `count` images that are generated, each of the n belongs to count / n in a row.

        Args:
          channels: that the ControlNet takes.
          mode: see `resize`.
          crops: of the input images of which only a part is generated, one or several that divide
            `count`; n is then `count`.
        Raises: InvalidArgumentError: a ControlNet that takes other channels than RGB; unknown mode.
        """
        total = count if crops else len(self._images)
        found = []
        for i in range(total):
            image = self._images[i * len(self._images) // total]
            crop = crops[i * len(crops) // total] if crops else None
            pixels = _fitted(image, width, height, mode, crop)
            found.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if channels != _RGB:
            raise InvalidArgumentError(
                f"{NAME}: the ControlNet takes {channels} channels; only RGB, 3, is supported"
            )
        return np.stack(found)


def _opened(source: ImageInput) -> list[Image.Image | np.ndarray]:
    array = array_file(source)
    source = source if array is None else array
    if isinstance(source, Image.Image | str | Path):
        image, called = open_image(source, NAME)
        has_levels = image.mode in ("I", "F") or image.mode.startswith("I")
        return [to_rgb(image, called) if has_levels else image]
    array = to_array(checked_source(source, NAME), NAME)
    if array.dtype.kind == "f" and array.size:
        low, high = array.min(), array.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InvalidArgumentError(f"{NAME}: contains NaN or infinity")
        if low >= -1 - _TOLERANCE and high <= 1 + _TOLERANCE:
            return [_with_channels(each) for each in split_batch(array, NAME)]
    levels = array if array.dtype == np.uint8 else to_levels(array, NAME)
    return [
        to_rgb(Image.fromarray(np.ascontiguousarray(each)), NAME)
        for each in split_batch(levels, NAME)
    ]


def _fitted(
    image: Image.Image | np.ndarray, width: int, height: int, mode: str, crop: Crop | None
) -> np.ndarray:
    """(height, width, channels) float32."""
    if isinstance(image, np.ndarray):
        if crop is not None:
            left, top, right, bottom = crop.box
            image = nearest(image, *crop.size)
            image = image[max(top, 0) : bottom, max(left, 0) : right]
            mode = "fill"
        return nearest(image, width, height, mode)
    if crop is not None:
        image = resize(image, *crop.size).crop(crop.box)
        mode = "fill"
    resized = to_rgb(resize(image, width, height, mode), NAME)
    return np.asarray(resized, np.float32) / np.float32(255)


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32, from grey, RGB or RGBA."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], _RGB, axis=2)
    if pixels.shape[2] not in (1, _RGB, _RGB + 1):
        raise InvalidArgumentError(f"{NAME}: expected RGB, got {shown(pixels)}")
    return np.asarray(pixels[..., :_RGB], np.float32)
