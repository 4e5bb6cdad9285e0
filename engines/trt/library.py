"""TensorRT and TensorRT-RTX, and where the two differ."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from sdexport.engines.errors import InvalidArgumentError, MissingDependencyError
from sdexport.engines.messages import import_failure


@dataclass(frozen=True)
class Library:
    """One of the two libraries.

    name: as NVIDIA writes it. module: to import. extra: of this package.
    oldest: the first version that has what sdexport uses.
    portable: it builds without a GPU, for a list of compute capabilities.
    runtime_cache: it compiles kernels when an engine is opened and can keep them in a file; it also
      captures CUDA graphs itself.
    """

    name: str
    module: str
    extra: str
    oldest: str
    portable: bool
    runtime_cache: bool

    def load(self) -> Any:
        """Import the module.

        Raises: MissingDependencyError: it is not installed, or too old; the message names the pip
          command.
        """
        command = f"pip install --upgrade 'sdexport[{self.extra}]'"
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.name} is not installed; run: pip install 'sdexport[{self.extra}]'"
                f"{import_failure(error)}"
            ) from error
        if _numbers(str(module.__version__)) < _numbers(self.oldest):
            raise MissingDependencyError(
                f"{self.name} {module.__version__} is installed, and {self.oldest} or later is "
                f"needed; run: {command}"
            )
        return module

    def version(self) -> str:
        """The installed version.

        Raises: MissingDependencyError: it is not installed.
        """
        return str(self.load().__version__)


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    return tuple(map(int, re.findall(r"\d+", version)))


LIBRARIES = {
    "tensorrt": Library("TensorRT", "tensorrt", "tensorrt", "10.9", False, False),
    "tensorrt-rtx": Library("TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx", "1.6", True, True),
}


def library(backend: str) -> Library:
    """The library of a backend.

    Raises: InvalidArgumentError: not one of LIBRARIES.
    """
    if backend not in LIBRARIES:
        raise InvalidArgumentError(
            f"unknown backend '{backend}'; choose one of {', '.join(LIBRARIES)}"
        )
    return LIBRARIES[backend]


def polygraphy_version() -> str:
    """The installed version of Polygraphy.

    Raises: MissingDependencyError: it is not installed.
    """
    from importlib import metadata  # takes 20 ms, and only builds need it

    try:
        return metadata.version("polygraphy")
    except metadata.PackageNotFoundError:
        raise MissingDependencyError(
            "building needs Polygraphy, which is not installed; run: pip install polygraphy"
        ) from None
