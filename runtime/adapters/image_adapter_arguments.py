"""T2I-Adapters and IP-Adapters as arguments of a pipeline call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.adapters.ip_scales import LARGEST_SCALE
from sdexport.runtime.images.loading import ImageSources
from sdexport.runtime.packages.package import Package

MOST = 16
"""Adapters of one kind of one call."""
T2I_NAME, IP_NAME = "t2i_adapters", "ip_adapters"
"""The arguments of a call."""
_T = TypeVar("_T")


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
        _check_package("T2IAdapter", self.package)
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
        _check_package("IPAdapter", self.package)
        if self.images is None:
            raise InvalidArgumentError("IPAdapter: expected an image, got None")


def _check_package(name: str, package: object) -> None:
    is_path = isinstance(package, (str, PathLike)) and str(package).strip()
    if not is_path and not isinstance(package, Package):
        raise InvalidArgumentError(
            f"{name}: expected the folder of a package, got {shown(package)}"
        )


def checked_t2i_adapters(adapters: object) -> tuple[T2IAdapter, ...]:
    """The argument `t2i_adapters` as a list.

    Raises: InvalidArgumentError: it is no list of T2I-Adapters, or a long one.
    """
    return _checked(T2I_NAME, adapters, T2IAdapter, 'T2IAdapter("canny", "edges.png")')


def checked_ip_adapters(adapters: object) -> tuple[IPAdapter, ...]:
    """The argument `ip_adapters` as a list.

    Raises: InvalidArgumentError: it is no list of IP-Adapters, or a long one.
    """
    return _checked(IP_NAME, adapters, IPAdapter, 'IPAdapter("ip-adapter", "painting.png")')


def _checked(name: str, adapters: object, class_: type[_T], example: str) -> tuple[_T, ...]:
    if adapters is None:
        return ()
    if isinstance(adapters, class_):
        return (adapters,)
    if not isinstance(adapters, (list, tuple)):
        raise InvalidArgumentError(
            f"{name}: expected a list such as [{example}], got {shown(adapters)}"
        )
    for each in adapters:
        if not isinstance(each, class_):
            raise InvalidArgumentError(f"{name}: expected a {class_.__name__}, got {shown(each)}")
    if len(adapters) > MOST:
        raise InvalidArgumentError(f"{name}: at most {MOST} at once, got {len(adapters)}")
    return tuple(adapters)
