"""The keys and values of an IP-Adapter's images, computed once for a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from sdexport.engines import Session, TensorSpec
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.ip_groups import ImageGroup
from sdexport.runtime.adapters.ip_inputs import ImageLayer
from sdexport.runtime.component_sessions import finite
from sdexport.runtime.images.loading import ImageSources, listed
from sdexport.runtime.images.masks import THRESHOLD, load_masks
from sdexport.runtime.images.resizing import nearest, resize
from sdexport.runtime.models.ip_adapter import FEATURES, IMAGE_TOKENS, PIXELS, key_name, value_name

_HIDDEN_RANK = 3
"""Axes of the features of adapters that take hidden states."""


Projected = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
"""Keys and values of images, by layer: (images, tokens, width) float32."""


class EncodedImages:
    """Images of an adapter, encoded when they are first needed.

    Args:
      encoder, projection: sessions of the adapter.
      pixels: (images, 3, S, S) float32, as the encoder takes them.
      layers: of the UNet.
    """

    def __init__(
        self,
        encoder: Session,
        projection: Session,
        pixels: np.ndarray,
        layers: Sequence[ImageLayer],
    ) -> None:
        self._encoder, self._projection = encoder, projection
        self._pixels, self._layers = pixels, layers

    @cached_property
    def conditional(self) -> Projected:
        """Of the images.

        Raises: EngineError: a component failed, or its output is not finite.
        """
        return self._projected(self._features)

    @cached_property
    def unconditional(self) -> Projected:
        """Of as many images that show nothing.

        Of those diffusers takes the embedding 0, or what the encoder makes of pixels of 0.
        """
        features = self._features
        if features.ndim == _HIDDEN_RANK:
            nothing = self._encoder.run({PIXELS: np.zeros_like(self._pixels[:1])})[FEATURES]
        else:
            nothing = np.zeros_like(features[:1])
        return self._projected(finite(np.repeat(nothing, len(features), 0), "image_encoder", "0"))

    @cached_property
    def _features(self) -> np.ndarray:
        found = self._encoder.run({PIXELS: self._pixels})[FEATURES]
        return finite(found, self._encoder.name, "the image")

    def _projected(self, features: np.ndarray) -> Projected:
        outputs = self._projection.run({FEATURES: features})
        for value in outputs.values():
            finite(value, self._projection.name, "the image")
        numbered = list(enumerate(self._layers))
        return (
            {layer.name: outputs[key_name(i)] for i, layer in numbered},
            {layer.name: outputs[value_name(i)] for i, layer in numbered},
        )


def check_fits(
    name: str,
    outputs: Sequence[TensorSpec],
    layers: Sequence[ImageLayer],
    text_width: object,
) -> None:
    """Check that an IP-Adapter has keys and values for each layer of a UNet.

    Args:
      name: of the adapter's package, for messages.
      outputs: of its projection.
      layers: of the UNet. text_width: of the UNet's text embeddings.
    Raises: InvalidArgumentError: another family, or other widths. PackageError: its outputs are no
      keys and values.
    """
    with parsing(PackageError, name):
        shapes = {spec.name: _projected_shape(spec) for spec in outputs}
        *_, width = shapes.pop(IMAGE_TOKENS)
        pairs = [
            (shapes.pop(key_name(i)), shapes.pop(value_name(i))) for i in range(len(shapes) // 2)
        ]
        if shapes or any(keys != values for keys, values in pairs):
            raise ValueError("its outputs are no keys and values for each layer")
        given = [keys[-1] for keys, _ in pairs]
    wanted = [layer.width for layer in layers]
    if given != wanted or width != text_width:
        raise InvalidArgumentError(
            f"ip_adapters: {name} is for another model: it has {_described(given, width)}, and the "
            f"UNet takes {_described(wanted, text_width)}"
        )


def _projected_shape(spec: TensorSpec) -> tuple[int | str, ...]:
    """Raises: ValueError: it is not that of tokens."""
    if len(spec.shape) != 3:
        raise ValueError(f"{spec.name:.80} is {shown(str(spec))}")
    return spec.shape


def _described(widths: Sequence[object], width: object) -> str:
    most = max((each for each in widths if isinstance(each, int)), default=0)
    return f"{len(widths)} layers of up to {most} channels and tokens of width {width}"


def groups_of(
    images: EncodedImages,
    scales: Sequence[Mapping[str, float]],
    masks: Sequence[np.ndarray] | None,
    count: int,
    *,
    guided: bool,
) -> list[ImageGroup]:
    """The attentions of an adapter: one for all its images, or one for each of them with its mask.

    Args:
      scales: by layer, one mapping for all images, or one for each.
      count: images of the call.
      guided: whether the unconditional rows come first.
    """
    halves = [images.unconditional, images.conditional] if guided else [images.conditional]
    number = len(next(iter(images.conditional[0].values())))
    parts = [slice(None)] if masks is None else [slice(i, i + 1) for i in range(number)]
    every = list(scales) * (len(parts) if len(scales) == 1 else 1)
    return [
        ImageGroup(
            _rows([keys for keys, _ in halves], part, count),
            _rows([values for _, values in halves], part, count),
            every[i],
            None if masks is None else masks[i],
        )
        for i, part in enumerate(parts)
    ]


def _rows(
    halves: Sequence[Mapping[str, np.ndarray]], part: slice, count: int
) -> dict[str, np.ndarray]:
    """(rows, tokens, width) by layer: the tokens of some images one after another, in each row."""
    found = {}
    for layer in halves[0]:
        rows = [half[layer][part].reshape(1, -1, half[layer].shape[-1]) for half in halves]
        found[layer] = np.concatenate([np.repeat(row, count, 0) for row in rows])
    return found


def load_attention_masks(source: object, images: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Masks of images, bright where an image has an effect, as by diffusers: resized and black or
    white. Arrays are resized to the nearest pixels, images as their mode says.

    Args:
      source: one for each of the adapter's images. size: (height, width) of the call.
    Returns: (height, width) float32 of 0 and 1 each.
    Raises: InvalidArgumentError: another number of masks; see load_masks.
    """
    given: ImageSources = source  # type: ignore[assignment]
    loaded = [
        _grey(m, each, size) for each in listed(given, "masks") for m in load_masks(each, "masks")
    ]
    if len(loaded) != images:
        raise InvalidArgumentError(
            f"masks: expected one for each of {images} images, got {len(loaded)}"
        )
    return [(each >= THRESHOLD).astype(np.float32) for each in loaded]


def _grey(mask: Image.Image, source: object, size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8."""
    height, width = size
    if isinstance(source, Image.Image | str | Path):
        return np.asarray(resize(mask, width, height).convert("L"))
    return nearest(np.asarray(mask.convert("L")), width, height)
