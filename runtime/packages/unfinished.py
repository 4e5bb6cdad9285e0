"""How an export marks what it has not finished, and rejecting a folder with such a mark.

An export writes to a hidden folder next to its destination. That folder holds a marker file, and in
it the package, whose sdexport.json says the same until the real one replaces it. The last step
moves the package out of the hidden folder; from then on it has neither mark.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.engines.errors import PackageError

UNFINISHED = "sdexport-unfinished.json"
"""The marker file of the hidden folder."""
_MARK = "unfinished"
_NOTE = "An export that did not finish. Nothing can load this folder; export again, or delete it."


def marker_content(destination: str | None) -> bytes:
    """The content of the marker file, for the export to a folder of this name."""
    return _json({"destination": destination, "note": _NOTE, "process": os.getpid()})


def unfinished_manifest() -> bytes:
    """The content of sdexport.json as long as the export runs."""
    return _json({_MARK: True, "note": _NOTE})


def check_finished(folder: Path) -> None:
    """Raises: PackageError: the folder is the hidden folder of an export, or the package in it."""
    real = Path(os.path.realpath(folder))
    for place in (real, real.parent):
        if os.path.lexists(place / UNFINISHED):  # whatever it is, link and folder included
            raise _unfinished(folder)


def check_manifest_finished(folder: Path, data: Mapping[str, Any]) -> None:
    """Raises: PackageError: this content of sdexport.json is that of an unfinished export."""
    if _MARK in data:
        raise _unfinished(folder)


def _unfinished(folder: Path) -> PackageError:
    return PackageError(
        f"{folder} is an unfinished export: it was interrupted, or is still running; "
        "run 'sdexport export' again and load its destination"
    )


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
