"""Damages of a file of a built engine, and of its sidecar."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sdexport.engines.cache.sidecar import with_own_digest


def truncated(file: Path) -> None:
    """Cut off the last 100 bytes."""
    os.truncate(file, file.stat().st_size - 100)


def rotten(file: Path) -> None:
    """Flip a bit."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other_version(file: Path) -> None:
    """Say that another version of the library built it."""
    sidecar = file.with_suffix(".json")
    values = json.loads(sidecar.read_text())
    values.pop("sidecar_sha256")
    sidecar.write_text(with_own_digest(values | {"library_version": "2020.1"}))


def no_json(file: Path) -> None:
    """Break the sidecar."""
    file.with_suffix(".json").write_text("{")


def missing(file: Path) -> None:
    """Delete the file."""
    file.unlink()


def link(file: Path) -> None:
    """Replace it by a link to itself."""
    other = file.with_name("other")
    file.rename(other)
    file.symlink_to(other)


def folder(file: Path) -> None:
    """Replace it by a folder."""
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    """Replace it by a pipe."""
    file.unlink()
    os.mkfifo(file)


DAMAGES = (truncated, rotten, other_version, no_json, missing, link, folder, pipe)
