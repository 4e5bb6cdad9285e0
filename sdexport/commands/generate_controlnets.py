"""The values of --controlnet, --t2i-adapter and --ip-adapter of `sdexport generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown

if TYPE_CHECKING:
    from sdexport.runtime.adapters.controlnet_argument import ControlNet
    from sdexport.runtime.adapters.image_adapter_arguments import IPAdapter, T2IAdapter

FORM = "PACKAGE:[MODE=]IMAGE[:SCALE[:START:END]]"
_OF_ADAPTERS = "PACKAGE:IMAGE[:SCALE]"
_Reading = tuple[Path, Path, list[float]]
_DIGITS = 5
"""Of the number of a mode, fewer."""
_ModeOfImage = tuple[str | int | None, Path]


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
        package, named, numbers = _parsed(text, "--controlnet", FORM, (3, 1, 0))
        mode, image = _mode_of(named)
        settings = dict(zip(("scale", "start", "end"), numbers, strict=False))
        found.append(ControlNet(package, image, **settings, guess_mode=bool(guess_mode), mode=mode))
    return found


def _mode_of(named: Path) -> _ModeOfImage:
    """The mode and the image of MODE=IMAGE. A file of the whole name has no mode.

    Nor has a path with "=" in the name of a folder or of a file in one.
    """
    mode, equals, image = str(named).partition("=")
    is_path = "/" in mode or "\\" in mode
    if not (equals and mode and image) or is_path or named.is_file():
        return None, named
    return int(mode) if mode.isdecimal() and len(mode) < _DIGITS else mode, Path(image)


def t2i_adapters_of(texts: Sequence[str]) -> list[T2IAdapter]:
    """The T2I-Adapter of each value of --t2i-adapter.

    Raises: as controlnets_of.
    """
    from sdexport.runtime.adapters.image_adapter_arguments import T2IAdapter

    parsed = [_parsed(text, "--t2i-adapter", _OF_ADAPTERS, (1, 0)) for text in texts]
    return [T2IAdapter(package, image, *numbers) for package, image, numbers in parsed]


def ip_adapters_of(texts: Sequence[str]) -> list[IPAdapter]:
    """The IP-Adapter of each value of --ip-adapter.

    Raises: as controlnets_of.
    """
    from sdexport.runtime.adapters.image_adapter_arguments import IPAdapter

    parsed = [_parsed(text, "--ip-adapter", _OF_ADAPTERS, (1, 0)) for text in texts]
    return [
        IPAdapter(package, image, scale=numbers[0] if numbers else 1.0)
        for package, image, numbers in parsed
    ]


def _parsed(text: str, option: str, form: str, counts: Sequence[int]) -> _Reading:
    """Package, image and numbers. Their names may hold colons, such as that of a Windows drive."""
    readings = list(_readings(text, counts))
    if not readings:
        raise InvalidArgumentError(f"{option}: expected {form}, got {shown(text)}")
    with_package = [each for each in readings if each[0].is_dir()]
    for reading in with_package:
        if _image_of(reading, form).is_file():
            return reading
    if with_package:
        image = _image_of(with_package[0], form)
        raise FileNotFoundError(f"{option} {text}: no image at {image}")
    raise FileNotFoundError(f"{option} {text}: no package at {readings[0][0]}")


def _image_of(reading: _Reading, form: str) -> Path:
    return _mode_of(reading[1])[1] if form == FORM else reading[1]


def _readings(text: str, counts: Sequence[int]) -> Iterator[_Reading]:
    """Every way to read a value, with one of these counts of numbers at its end."""
    pieces = text.split(":")
    for count in counts:
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
