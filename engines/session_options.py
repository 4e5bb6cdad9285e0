"""The options of every backend's sessions, known without its library."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from sdexport.engines.errors import InvalidArgumentError

_ONNXRUNTIME = ("providers", "threads", "optimization", "prepacking")
_TENSORRT = ("device", "cuda_graphs", "runtime_cache")
SESSION_OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "onnxruntime": _ONNXRUNTIME,
        "onnxruntime-cuda": ("device", "threads", "optimization", "provider_options"),
        "webgpu": ("device", "threads"),
        "openvino": (
            *("device", "precision", "threads", "streams", "cache_dir", "static", "rewrite"),
        ),
        "tensorrt": _TENSORRT,
        "tensorrt-rtx": _TENSORRT,
    }
)
"""Backend -> the options that its sessions take; docs/backends.md says what they do."""
FILE_OPTIONS = ("plan", "digest", "package", "files", "seldom", "cached", "check")
"""Options that say which files are opened, and for what; a package's pipeline sets them itself."""


def check_options(
    backends: Collection[str], options: Iterable[str], *, others: Collection[str] = ()
) -> None:
    """Check the names of options.

    Args:
      backends: each option must be of at least one of them.
      others: further names that are allowed.
    Raises: InvalidArgumentError: an unknown option; the message suggests the nearest, or names the
      backends that have it.
    """
    known = [*dict.fromkeys(name for b in backends for name in SESSION_OPTIONS[b])]
    for option in options:
        if option not in (*known, *others):
            takes = "takes" if len(backends) == 1 else "take"
            raise InvalidArgumentError(
                f"{' and '.join(backends)} {takes} no option '{option:.60}'"
                f"{_hint(option, (*known, *others))}; "
                f"{'it' if len(backends) == 1 else 'they'} {takes} {', '.join((*known, *others))}"
            )


def _hint(option: str, known: Collection[str]) -> str:
    having = [backend for backend, names in SESSION_OPTIONS.items() if option in names]
    if having:
        return f", an option of {', '.join(having)}"
    similar = difflib.get_close_matches(option.lower(), known, 1)
    return f"; did you mean {similar[0]}?" if similar else ""
