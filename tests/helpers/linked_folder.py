"""A copy of a folder that costs nothing: links, which a test may replace by files of its own."""

from __future__ import annotations

from pathlib import Path


def linked_folder(source: Path, target: Path) -> Path:
    """Make `target` a folder of links to the files of `source`."""
    for file in source.rglob("*"):
        if file.is_file():
            link = target / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    return target
