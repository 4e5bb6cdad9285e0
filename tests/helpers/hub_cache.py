"""A folder as the hub's client caches it: a snapshot of links into a folder of blobs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sdexport.engines.files import sha256_of


def cached_snapshot(source: Path, cache: Path, *, subfolder: str = "") -> Path:
    """Put the files of a folder into a made-up cache, at the top of a repository or below it."""
    repository = cache / "models--somebody--model"
    folder = repository / "snapshots" / ("0123abcd" * 5) / subfolder
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    for file in source.rglob("*"):
        if file.is_file():
            blob, link = blobs / sha256_of(file), folder / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return folder
