"""The ControlNets of `sdexport generate`: the values of --controlnet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown

if TYPE_CHECKING:
    from sdexport.runtime.adapters.controlnet_argument import ControlNet

FORM = "PACKAGE:IMAGE[:SCALE[:START:END]]"
_Reading = tuple[Path, Path, list[float]]


def controlnets_of(texts: Sequence[str], *, guess_mode: bool | None) -> list[ControlNet]:
    """The ControlNet of each value of --controlnet.

    Args:
      guess_mode: of all of them.
    Raises: InvalidArgumentError: another form, or a number out of range. FileNotFoundError: no such
      package or image.
    """
    from sdexport.runtime.adapters.controlnet_argument import ControlNet

    if guess_mode and not texts:
        raise InvalidArgumentError("--guess-mode needs --controlnet")
    found = []
    for text in texts:
        package, image, numbers = _parsed(text)
        settings = dict(zip(("scale", "start", "end"), numbers, strict=False))
        found.append(ControlNet(package, image, **settings, guess_mode=bool(guess_mode)))
    return found


def _parsed(text: str) -> _Reading:
    """Package, image and numbers. Their names may hold colons, such as that of a Windows drive."""
    readings = list(_readings(text))
    if not readings:
        raise InvalidArgumentError(f"--controlnet: expected {FORM}, got {shown(text)}")
    with_package = [each for each in readings if each[0].is_dir()]
    for reading in with_package:
        if reading[1].is_file():
            return reading
    if with_package:
        raise FileNotFoundError(f"--controlnet {text}: no image at {with_package[0][1]}")
    raise FileNotFoundError(f"--controlnet {text}: no package at {readings[0][0]}")


def _readings(text: str) -> Iterator[_Reading]:
    """Every way to read a value, the one with most numbers first."""
    pieces = text.split(":")
    for count in (3, 1, 0):
        numbers = _numbers(pieces[len(pieces) - count :])
        rest = pieces[: len(pieces) - count]
        if numbers is None:
            continue
        for place in range(1, len(rest)):
            package, image = ":".join(rest[:place]), ":".join(rest[place:])
            is_drive = len(package) == 1 and package.isalpha() and image[:1] in ("/", "\\")
            if package and image and not is_drive:
                yield Path(package), Path(image), numbers


def _numbers(pieces: Sequence[str]) -> list[float] | None:
    try:
        return [float(piece) for piece in pieces]
    except ValueError:
        return None
