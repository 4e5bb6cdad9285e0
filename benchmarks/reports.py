"""Reports of benchmarks: JSON, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.engines.files import write_atomically


def save(report: Mapping[str, Any], path: Path | None) -> None:
    """Write a report where --json says, if it says anything; numbers of NumPy may be in it."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _text(report))


def show_and_save(report: Mapping[str, Any], path: Path | None) -> None:
    """Print a report too."""
    print(_text(report), end="")
    save(report, path)


def _text(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=1, default=float) + "\n"
