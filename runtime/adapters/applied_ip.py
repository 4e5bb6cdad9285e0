"""The IP-Adapters of one call: their images encoded, and bound to the denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.engines.messages import shown
from sdexport.engines.session import Session
from sdexport.runtime import checks
from sdexport.runtime.adapters.adapted_session import AdaptedSession
from sdexport.runtime.adapters.adapter_store import (
    AdapterStore,
    OpenAdapter,
    OpenedAdapters,
    recorded_identity,
)
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.image_adapter_arguments import IP_NAME, IPAdapter
from sdexport.runtime.adapters.ip_groups import ImageGroup, group_inputs, no_images
from sdexport.runtime.adapters.ip_images import (
    EncodedImages,
    check_fits,
    groups_of,
    load_attention_masks,
)
from sdexport.runtime.adapters.ip_inputs import image_layers, is_row_input
from sdexport.runtime.adapters.ip_scales import scale_of_layers
from sdexport.runtime.expected_calls import ImageCall, level_sizes
from sdexport.runtime.images.clip_image import ClipImageProcessor
from sdexport.runtime.images.input_digest import identify
from sdexport.runtime.images.loading import load_images
from sdexport.runtime.images.recorded_values import RecordedIPAdapter, plain
from sdexport.runtime.models.components import AdapterKind, adapter_graph
from sdexport.runtime.models.ip_adapter import IMAGE_ENCODER, IMAGE_PROJECTION, PIXELS
from sdexport.runtime.packages.package import Package

MOST_IMAGES = 64
"""Of one adapter."""
_EMBEDDINGS = "encoder_hidden_states"
_LARGEST = 4096
"""Pixels in width and height that an image encoder takes."""


class AppliedIPAdapters:
    """What the IP-Adapters of a call change.

    Args:
      store: of the pipeline. package: of the model.
      adapters: at least one.
    Raises: InvalidArgumentError: an adapter that does not fit the model, or images and masks that
      cannot be used. PackageError: the model's package takes no IP-Adapters. See Package.load.
    """

    kind = AdapterKind.IP_ADAPTER
    replacement = None

    def __init__(
        self,
        store: AdapterStore,
        package: Package,
        adapters: Sequence[IPAdapter],
        call: ControlledImages,
    ) -> None:
        self._adapters, self._call = adapters, call
        self._unit = package.manifest.downscale
        self._specs = package.graph_inputs(adapter_graph(package.family.denoiser, {self.kind}))
        with parsing(PackageError, package.folder):
            self._layers = image_layers(self._specs)
            self._width = {each.name: each.shape for each in self._specs}[_EMBEDDINGS][-1]
        self._images = [load_images(each.images, IP_NAME) for each in adapters]
        self._scales = [
            self._layer_scales(*each) for each in zip(adapters, self._images, strict=True)
        ]
        self._masks = [
            None
            if each.masks is None
            else load_attention_masks(each.masks, len(images), (call.height, call.width))
            for each, images in zip(adapters, self._images, strict=True)
        ]
        sources = [each.package for each in adapters]
        self._opened = OpenedAdapters(store, sources, self.kind, self._check)
        self.packages = self._opened.packages
        self.recorded = tuple(map(_recorded, adapters, self.packages))

    def close(self) -> None:
        """Release the packages; closing twice is allowed."""
        self._opened.close()

    def open(self, call: ImageCall | None) -> None:
        """Nothing of it runs in the steps."""

    def wrap(self, session: Session) -> Session:
        """The denoiser with the masks of the images.

        Args:
          session: of its graph that takes IP-Adapters.
        """
        inputs = self._computed(guided=False)
        constants = {name: value for name, value in inputs.items() if not is_row_input(name)}
        return AdaptedSession(session, constants)

    def conditioning(self, *, guided: bool) -> dict[str, np.ndarray]:
        """Further inputs of that session, a row for each row of the embeddings; see `denoise`.

        Releases the packages: they do not run in the steps.
        """
        inputs = self._computed(guided=guided)
        self.close()
        return {name: value for name, value in inputs.items() if is_row_input(name)}

    def _check(self, adapter: Package) -> None:
        outputs = adapter.manifest.components[IMAGE_PROJECTION.name].outputs
        check_fits(str(adapter.folder), outputs, self._layers, self._width)
        _image_side(adapter)

    def _computed(self, *, guided: bool) -> dict[str, np.ndarray]:
        """All inputs of the graph for images."""
        groups: list[ImageGroup] = []
        for images, scales, masks in zip(self._encoded, self._scales, self._masks, strict=True):
            if any(any(each.values()) for each in scales):
                groups += groups_of(images, scales, masks, self._call.count, guided=guided)
        sizes = level_sizes(self._call.height // self._unit, self._call.width // self._unit)
        if not groups:
            return no_images(self._specs, self._call.count * (2 if guided else 1), sizes)
        return group_inputs(self._specs, groups, sizes)

    @cached_property
    def _encoded(self) -> list[EncodedImages]:
        pairs = zip(self._opened, self._images, strict=True)
        return [self._to_encode(*each) for each in pairs]

    def _to_encode(self, opened: OpenAdapter, images: Sequence[Any]) -> EncodedImages:
        encoder = opened.sessions.session(IMAGE_ENCODER.name)
        side = _image_side(opened.package)
        pixels = ClipImageProcessor(size=side, crop=(side, side))(images)
        projection = opened.sessions.session(IMAGE_PROJECTION.name)
        return EncodedImages(encoder, projection, pixels, self._layers)

    def _layer_scales(self, adapter: IPAdapter, images: Sequence[Any]) -> list[Mapping[str, float]]:
        """The scale of each layer, for all images or for each of them."""
        if len(images) > MOST_IMAGES:
            raise InvalidArgumentError(
                f"{IP_NAME}: at most {MOST_IMAGES} images at once, got {len(images)}"
            )
        names = [layer.name for layer in self._layers]
        if isinstance(adapter.scale, Sequence) and len(adapter.scale) != len(images):
            raise InvalidArgumentError(
                f"{IP_NAME}: expected a scale for each of {len(images)} images, "
                f"got {shown(list(adapter.scale))}"
            )
        given = list(adapter.scale) if isinstance(adapter.scale, Sequence) else [adapter.scale]
        return [scale_of_layers("IPAdapter: scale", each, names) for each in given]


def _image_side(adapter: Package) -> int:
    """Width and height of the images that the adapter's encoder takes, in pixels.

    Raises: PackageError: it takes something else.
    """
    with parsing(PackageError, adapter.folder):
        inputs = adapter.manifest.components[IMAGE_ENCODER.name].inputs
        shape = {spec.name: spec.shape for spec in inputs}[PIXELS]
        side = checks.integer(f"size of {PIXELS}", shape[-1], 1, _LARGEST)
        if shape[1:] != (3, side, side):
            raise ValueError(f"{PIXELS} has the shape {shown(shape)}")
    return side


def _recorded(adapter: IPAdapter, package: Package) -> RecordedIPAdapter:
    return RecordedIPAdapter(
        *recorded_identity(package),
        identify(adapter.images) or (),
        plain(adapter.scale),
        None if adapter.masks is None else identify(adapter.masks),
    )
