"""T2I-Adapters and IP-Adapters as arguments of a pipeline call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks
from sdexport.runtime.adapters.adapter_arguments import (
    LARGEST_SCALE,
    check_package,
    checked_list,
)
from sdexport.runtime.images.loading import ImageSources
from sdexport.runtime.packages.package import Package

T2I_NAME, IP_NAME = "t2i_adapters", "ip_adapters"
"""The arguments of a call."""


@dataclass(frozen=True, eq=False)
class T2IAdapter:
    """A T2I-Adapter with the image that it follows, for the argument `t2i_adapters` of a call.

    Attributes:
      package: the folder that `sdexport.export_adapter` wrote, or that package, loaded.
      image: the control image, or one for each image of the call: files, Pillow images or arrays.
      scale: -100..100, by which its features are multiplied.
      factor: 0..1, the part of the steps, from the first on, in which it has an effect.
    Raises: InvalidArgumentError: a value out of range.

    Example:
        >>> from sdexport import T2IAdapter
        >>> T2IAdapter("canny", "edges.png", scale=0.8).factor
        1.0
    """

    package: str | PathLike[str] | Package
    image: ImageSources
    scale: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        checks.number("T2IAdapter: scale", self.scale, -LARGEST_SCALE, LARGEST_SCALE)
        checks.number("T2IAdapter: factor", self.factor, 0, 1)
        check_package("T2IAdapter", self.package)
        if self.image is None:
            raise InvalidArgumentError("T2IAdapter: expected a control image, got None")


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """An IP-Adapter with the images that it shows, for the argument `ip_adapters` of a call.

    Attributes:
      package: the folder that `sdexport.export_adapter` wrote, or that package, loaded.
      images: one or several: files, Pillow images or arrays.
      scale: -100..100; or numbers by block, see ip_scales.py; or with masks one for each image.
      masks: one for each image, bright where it has an effect; None for everywhere.
    Raises: InvalidArgumentError: a value out of range.

    Example:
        >>> from sdexport import IPAdapter
        >>> style = {"up": {"block_0": [0.0, 1.0, 0.0]}}
        >>> IPAdapter("ip-adapter", "painting.png", scale=style).masks is None
        True
    """

    package: str | PathLike[str] | Package
    images: ImageSources
    scale: float | Mapping[str, Any] | Sequence[float] = 1.0
    masks: ImageSources | None = None

    def __post_init__(self) -> None:
        several = isinstance(self.scale, Sequence) and not isinstance(self.scale, str)
        if several and self.masks is None:
            raise InvalidArgumentError("IPAdapter: scales for each image need masks")
        if not isinstance(self.scale, Mapping):
            scales = list(self.scale) if several else [self.scale]  # type: ignore[arg-type]
            for each in scales:
                checks.number("IPAdapter: scale", each, -LARGEST_SCALE, LARGEST_SCALE)
        check_package("IPAdapter", self.package)
        if self.images is None:
            raise InvalidArgumentError("IPAdapter: expected an image, got None")


def checked_t2i_adapters(adapters: object) -> tuple[T2IAdapter, ...]:
    """The argument `t2i_adapters` as a list.

    Raises: InvalidArgumentError: it is no list of T2I-Adapters, or a long one.
    """
    return checked_list(T2I_NAME, adapters, T2IAdapter, 'T2IAdapter("canny", "edges.png")')


def checked_ip_adapters(adapters: object) -> tuple[IPAdapter, ...]:
    """The argument `ip_adapters` as a list.

    Raises: InvalidArgumentError: it is no list of IP-Adapters, or a long one.
    """
    return checked_list(IP_NAME, adapters, IPAdapter, 'IPAdapter("ip-adapter", "painting.png")')
