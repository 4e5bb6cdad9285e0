"""Reading and writing files: atomic writes, JSON objects, digests."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sdexport.engines.errors import SDExportError
from sdexport.engines.guarded_files import JSON_LIMIT, parsing, read_guarded


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for an atomic write: after an error or a crash, `path` is what it was before.

    The data goes to a new file of a unique name in the same folder, which is flushed to disk and
    renamed to `path` when the block ends.

    Example:
        with atomic_write(Path("image.png")) as file:
            image.save(file, format="PNG")
    Raises: OSError: the folder is missing or cannot be written, or the disk is full.
    """
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file with `atomic_write`; text as UTF-8."""
    with atomic_write(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_json(
    path: Path,
    error: type[SDExportError],
    *,
    folder: Path | None = None,
    limit: int = JSON_LIMIT,
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
      error: raised if the file is not UTF-8, not JSON, or holds something else than an object.
      folder, limit: see open_guarded.
    Raises: FileNotFoundError: no such file. OSError: it cannot be read.
    """
    content = read_guarded(path, error=error, folder=folder, limit=limit)
    with parsing(error, path):
        value = json.loads(content.decode("utf-8-sig"))
    if not isinstance(value, dict):
        raise error(f"{path} is damaged: it holds no JSON object")
    return value


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
