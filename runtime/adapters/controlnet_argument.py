"""A ControlNet as an argument of a pipeline call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.adapters.adapter_arguments import (
    LARGEST_SCALE,
    check_package,
    checked_list,
)
from sdexport.runtime.images.loading import ImageSources
from sdexport.runtime.packages.package import Package

NAME = "controlnets"


@dataclass(frozen=True, eq=False)
class ControlNet:
    """A ControlNet with the image that it follows, for the argument `controlnets` of a call.

    Attributes:
      package: the folder that `sdexport.export_adapter` wrote, or that package, loaded.
      image: the control image, or one for each prompt: files, Pillow images of any mode or arrays;
        see sdexport.runtime.images.control_images.
      scale: -100..100, by which what the network adds is multiplied.
      start, end: the part of the steps in which it runs, as fractions, 0..1.
      guess_mode: run it on the conditional half alone, and weaken it on the higher levels, as
        diffusers does: for images that should follow the control image without a prompt.
      mode: of a ControlNet-Union, what the control image is: a name such as "canny" or "depth", or
        the number of the type. Several of one package run together, each with its own scale, start
        and end. A list is short for that: `image` is then a list with the images of each mode.
    Raises: InvalidArgumentError: a value out of range; end before start; another number of images
      than of modes.

    Example:
        >>> from sdexport import ControlNet
        >>> ControlNet("canny", "edges.png", scale=0.8, end=0.5).scale
        0.8
    """

    package: str | PathLike[str] | Package
    image: ImageSources
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    mode: str | int | Sequence[str | int] | None = None

    def __post_init__(self) -> None:
        checks.number("ControlNet: scale", self.scale, -LARGEST_SCALE, LARGEST_SCALE)
        checks.interval("ControlNet: (start, end)", (self.start, self.end))
        checks.boolean("ControlNet: guess_mode", self.guess_mode)
        check_package("ControlNet", self.package)
        if self.image is None:
            raise InvalidArgumentError("ControlNet: expected a control image, got None")
        self._check_mode()

    def _check_mode(self) -> None:
        modes = self.mode if isinstance(self.mode, (list, tuple)) else (self.mode,)
        for mode in modes:
            is_number = isinstance(mode, int) and not isinstance(mode, bool) and mode >= 0
            if not (is_number or isinstance(mode, str) or self.mode is None):
                raise InvalidArgumentError(
                    "ControlNet: mode: expected a name such as 'canny', the number of a type, or "
                    f"a list of these, got {shown(mode)}"
                )
        if modes is not self.mode:
            return
        images: Any = self.image
        count = len(images) if isinstance(images, (list, tuple)) else 1
        if not modes or count != len(modes):
            raise InvalidArgumentError(
                f"ControlNet: mode: got {len(modes)} modes and {count} control images; give a list "
                "with the images of each mode"
            )

    def of_each_mode(self) -> tuple[ControlNet, ...]:
        """One for each mode; itself if it has one or none."""
        if not isinstance(self.mode, (list, tuple)):
            return (self,)
        images: Any = self.image
        images = images if isinstance(images, (list, tuple)) else [images]
        return tuple(
            replace(self, image=image, mode=mode)
            for image, mode in zip(images, self.mode, strict=True)
        )


def checked_controlnets(controlnets: object) -> Sequence[ControlNet]:
    """The argument of a call as a list, in which each has at most one mode.

    Raises: InvalidArgumentError: it is no list of ControlNets, or a long one.
    """
    example = 'ControlNet("canny", "edges.png")'
    nets = checked_list(NAME, controlnets, ControlNet, example)
    each = [one for net in nets for one in net.of_each_mode()]
    return checked_list(NAME, each, ControlNet, example)
