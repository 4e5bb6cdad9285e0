"""A ControlNet as an argument of a pipeline call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from sdexport.engines.errors import InvalidArgumentError
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
    Raises: InvalidArgumentError: a value out of range; end before start.

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

    def __post_init__(self) -> None:
        checks.number("ControlNet: scale", self.scale, -LARGEST_SCALE, LARGEST_SCALE)
        checks.interval("ControlNet: (start, end)", (self.start, self.end))
        checks.boolean("ControlNet: guess_mode", self.guess_mode)
        check_package("ControlNet", self.package)
        if self.image is None:
            raise InvalidArgumentError("ControlNet: expected a control image, got None")


def checked_controlnets(controlnets: object) -> Sequence[ControlNet]:
    """The argument of a call as a list.

    Raises: InvalidArgumentError: it is no list of ControlNets, or a long one.
    """
    return checked_list(NAME, controlnets, ControlNet, 'ControlNet("canny", "edges.png")')
