"""TensorRT and TensorRT-RTX: the one place that knows where the two differ."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from sdexport.engines.messages import one_line


@dataclass(frozen=True)
class Library:
    """One of the two libraries.

    name: as NVIDIA writes it. module: to import. extra: of our package. portable: builds without a
    GPU, for a list of compute capabilities. runtime_cache: compiles kernels when an engine is
    opened, and can keep them; captures CUDA graphs by itself.
    """

    name: str
    module: str
    extra: str
    portable: bool
    runtime_cache: bool

    def load(self) -> Any:
        """The module.

        Raises: ImportError: it is not installed; the message names the pip command.
        """
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise ImportError(
                f"{self.name} is not installed; run: pip install 'sdexport[{self.extra}]'"
                f"{_library_hint(error)}"
            ) from error

    def version(self) -> str:
        """Raises: ImportError: it is not installed."""
        return str(self.load().__version__)


LIBRARIES = {
    "tensorrt": Library("TensorRT", "tensorrt", "tensorrt", False, False),
    "tensorrt-rtx": Library("TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx", True, True),
}


def library(backend: str) -> Library:
    """Raises: ValueError: not one of LIBRARIES."""
    if backend not in LIBRARIES:
        raise ValueError(f"unknown backend '{backend}'; choose one of {', '.join(LIBRARIES)}")
    return LIBRARIES[backend]


def polygraphy_version() -> str:
    """Raises: ImportError: Polygraphy is not installed."""
    from importlib import metadata  # 20 ms, which painting does not need

    try:
        return metadata.version("polygraphy")
    except metadata.PackageNotFoundError:
        raise ImportError(
            "building needs Polygraphy, which is not installed; run: pip install polygraphy"
        ) from None


def _library_hint(error: ImportError) -> str:
    """A module that is there but cannot find its shared libraries says which."""
    return "" if isinstance(error, ModuleNotFoundError) else f" ({one_line(error)})"
