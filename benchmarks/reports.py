"""Reports of benchmarks: JSON, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.engines.files import write_atomically


def save(report: Mapping[str, Any], path: Path | None) -> None:
    """Write a report to `path`, unless that is None; it may contain NumPy numbers."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _text(report))


def read(path: Path) -> dict[str, Any]:
    """The report in that file; empty if there is none."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def show_and_save(report: Mapping[str, Any], path: Path | None) -> None:
    """Print a report and write it to `path`."""
    print(_text(report), end="")
    save(report, path)


def _text(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=1, default=float) + "\n"
