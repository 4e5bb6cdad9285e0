"""What the arguments of a pipeline call for adapters of different kinds have in common."""

from __future__ import annotations

from os import PathLike
from typing import TypeVar

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.packages.package import Package

MOST = 16
"""Adapters of one kind of one call."""
LARGEST_SCALE = 100.0
_T = TypeVar("_T")


def check_package(name: str, package: object) -> None:
    """Check that something can be the package of an adapter.

    Args:
      name: of its class, for the message.
    Raises: InvalidArgumentError: it is neither a package nor the path of a folder.
    """
    is_path = (
        isinstance(package, (str, PathLike)) and str(package).strip() and "\0" not in str(package)
    )
    if not is_path and not isinstance(package, Package):
        raise InvalidArgumentError(
            f"{name}: expected the folder of a package, got {shown(package)}"
        )


def checked_list(name: str, adapters: object, class_: type[_T], example: str) -> tuple[_T, ...]:
    """The adapters of one kind: none, one alone, or several.

    Args:
      name: of the argument. example: of an adapter, for the message.
    Raises: InvalidArgumentError: it is no list of such adapters, or a long one.
    """
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
