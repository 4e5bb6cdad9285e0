"""Images as CLIP's vision models take them: resized, cropped and normalised.

The numbers are those of transformers' CLIPImageProcessor with Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.images.loading import with_alpha
from sdexport.runtime.images.resizing import MAX_SCALED

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of each channel of CLIP's training images, in 0..1."""
SIDE = 224
MAX_SIDE = 2048
"""Largest side of an image for a vision model; CLIP's have 224 and 336."""
_WHITE = (255, 255, 255, 255)
_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPImageProcessorFast")
_EXTRACTOR = "CLIPFeatureExtractor"
"""The name of the class in older files."""


@dataclass(frozen=True)
class ClipImageProcessor:
    """Turns images into the input of a CLIP vision model.

    size: (height, width) that images are resized to; an integer for the shorter side, with the
      proportions kept; None for no resizing.
    crop: (height, width) of what is cut out of the middle; black is added where an image is
      smaller. None for no cropping.
    resample: Pillow's filter for resizing.
    scale: levels of 0..255 are multiplied by it; None for no scaling.
    mean, std: of each channel, subtracted and divided by; None for no normalisation.
    """

    size: tuple[int, int] | int | None = SIDE
    crop: tuple[int, int] | None = (SIDE, SIDE)
    resample: Image.Resampling = Image.Resampling.BICUBIC
    scale: float | None = 1 / 255
    mean: tuple[float, ...] | None = MEAN
    std: tuple[float, ...] | None = STD

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From the content of a preprocessor_config.json; what it leaves out is as for CLIP.

        Raises: ValueError: a value that makes no sense, or a processor of another kind.
        """
        _check_kind(config)
        normalises = _flag(config, "do_normalize")
        size, crop = config.get("size", SIDE), config.get("crop_size", SIDE)
        if config.get("use_square_size"):
            size = [SIDE, SIDE]
        found = cls(
            size=_size(size) if _flag(config, "do_resize") else None,
            crop=_sides("crop_size", crop) if _flag(config, "do_center_crop") else None,
            resample=Image.Resampling(checks.integer("resample", config.get("resample", 3), 0, 5)),
            scale=_scale(config) if _flag(config, "do_rescale") else None,
            mean=_channels(config, "image_mean", MEAN) if normalises else None,
            std=_channels(config, "image_std", STD) if normalises else None,
        )
        if found.std is not None and not all(found.std):
            raise ValueError("image_std must not be 0")
        return found

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of what the model gets; None where it depends on the image."""
        return self.crop or (self.size if isinstance(self.size, tuple) else None)

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Prepare images.

        Args:
          images: of any size; of any mode that Pillow converts to RGB. Transparent ones are put on
            white.
        Returns: (B, 3, H, W) float32.
        Raises: ValueError: without cropping, images of different sizes.
        """
        prepared = [self._prepare(image) for image in images]
        if len({each.shape for each in prepared}) > 1:
            raise ValueError("without do_center_crop, images must have the same size")
        return np.stack(prepared)

    def _prepare(self, image: Image.Image) -> np.ndarray:
        """(3, H, W) float32 of one image."""
        levels = np.asarray(self._resized(_on_white(image)))
        if self.crop is not None:
            levels = _center_crop(levels, *self.crop)
        values = levels.astype(np.float32)
        if self.scale is not None:
            values = (levels * np.float64(self.scale)).astype(np.float32)
        if self.mean is not None and self.std is not None:
            values -= np.array(self.mean, np.float32)
            values /= np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image
        if isinstance(self.size, tuple):
            return image.resize(self.size[::-1], self.resample)
        width, height = image.size
        short, long = sorted(image.size)
        longer = int(self.size * long / short)
        scaled = (self.size, longer) if width <= height else (longer, self.size)
        if self.crop is None or scaled[0] * scaled[1] <= MAX_SCALED:
            return image.resize(scaled, self.resample)
        return self._scaled_middle(image, scaled, self.crop[::-1])

    def _scaled_middle(
        self, image: Image.Image, scaled: tuple[int, int], kept: tuple[int, int]
    ) -> Image.Image:
        """Only the middle of an image that would be very long; rounding may differ.

        Args:
          scaled: (width, height) of the whole. kept: (width, height) of what is cropped.
        """
        size = tuple(min(pair) for pair in zip(scaled, kept, strict=True))
        starts = [(whole - part) // 2 for whole, part in zip(scaled, size, strict=True)]
        units = [side / whole for side, whole in zip(image.size, scaled, strict=True)]
        left, top = (start * unit for start, unit in zip(starts, units, strict=True))
        right, bottom = (
            (start + part) * unit for start, part, unit in zip(starts, size, units, strict=True)
        )
        box = (left, top, min(right, image.width), min(bottom, image.height))
        return image.resize((size[0], size[1]), self.resample, box=box)


def _on_white(image: Image.Image) -> Image.Image:
    image = with_alpha(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _center_crop(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of (H, W, 3) levels, with black around it where they are smaller."""
    own = levels.shape[:2]
    padded = max(height, own[0]), max(width, own[1])
    top, left = ((whole - side + 1) // 2 for whole, side in zip(padded, own, strict=True))
    if padded != own:
        canvas = np.zeros((*padded, 3), levels.dtype)
        canvas[top : top + own[0], left : left + own[1]] = levels
        levels = canvas
    top += (own[0] - height) // 2
    left += (own[1] - width) // 2
    return levels[top : top + height, left : left + width]


def _check_kind(config: Mapping[str, Any]) -> None:
    for key, known in (("image_processor_type", _PROCESSORS), ("feature_extractor_type", ())):
        kind = config.get(key)
        if kind not in (None, _EXTRACTOR, *known):
            raise ValueError(f"{key} {shown(kind)} is not supported; expected {_PROCESSORS[0]}")
    for key in ("do_pad", "do_flip_channel_order", "do_reduce_labels"):
        if config.get(key):
            raise ValueError(f"{key} is not supported")


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    return True if value is None else checks.boolean(key, value)


def _size(value: object) -> tuple[int, int] | int:
    """The size of resized images, as an integer for the shorter side or (height, width)."""
    if isinstance(value, Mapping) and "shortest_edge" in value:
        if set(value) != {"shortest_edge"}:
            raise ValueError(f"size {shown(dict(value))} is not supported")
        value = value["shortest_edge"]
    if isinstance(value, (Mapping, list, tuple)):
        return _sides("size", value)
    return checks.integer("size", value, 1, MAX_SIDE)


def _sides(name: str, value: object) -> tuple[int, int]:
    """(height, width) from a mapping, a pair, or one integer for both."""
    if isinstance(value, Mapping):
        if set(value) != {"height", "width"}:
            raise ValueError(f"{name} {shown(dict(value))} is not supported")
        value = [value["height"], value["width"]]
    pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(pair) != 2:
        raise ValueError(f"{name} must be (height, width), got {shown(value)}")
    height, width = (checks.integer(name, side, 1, MAX_SIDE) for side in pair)
    return height, width


def _scale(config: Mapping[str, Any]) -> float:
    return checks.number("rescale_factor", config.get("rescale_factor", 1 / 255), 0, 1)


def _channels(config: Mapping[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """Three numbers, or one for all channels."""
    value = config.get(key, default)
    each = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if len(each) != 3:
        raise ValueError(f"{key} must hold 3 numbers, got {shown(value)}")
    return tuple(checks.number(key, number, -1e3, 1e3) for number in each)
