"""Reading and writing files: atomic writes, JSON objects, digests."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from sdexport.engines.errors import SDExportError
from sdexport.engines.guarded_files import JSON_LIMIT, parsing, read_guarded
from sdexport.engines.json_text import parse_json
from sdexport.engines.temporary_files import TEMPORARY, temporary_file


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for an atomic write: after an error or a crash, `path` is what it was before.

    The data goes to a new file of a unique name in the same folder, which is flushed to disk and
    renamed to `path` when the block ends. A file keeps its permissions when it is replaced. A link
    is replaced itself, and what it leads to is not touched. A device, a pipe and a link in /dev or
    /proc, such as /dev/stdout, cannot be replaced: the data is written to them when the block ends.

    Example:
        with atomic_write(Path("image.png")) as file:
            image.save(file, format="PNG")
    Raises: OSError: the folder is missing or cannot be written, the disk is full, or `path` is a
      folder; the message names `path`.
    """
    with _errors_naming(path):
        if _is_stream(path):
            content = io.BytesIO()
            yield content
            with open(path, "ab", buffering=0, opener=_open_existing) as stream:
                _write_all(stream, content.getbuffer())
            return
        with temporary_file(path) as (temporary, file):
            _keep_permissions(file, path)
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(temporary, path)


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Let errors name the file that is wanted, not a temporary one or none."""
    try:
        yield
    except OSError as error:
        temporary = error.filename is not None and str(error.filename).endswith(TEMPORARY)
        if error.errno is None or not (error.filename is None or temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_stream(path: Path) -> bool:
    """Whether data is written to `path` itself.

    Raises: OSError: it is a folder, a block device or a socket.
    """
    if path.is_symlink() and path.parent.resolve().parts[:2] in (("/", "dev"), ("/", "proc")):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OSError(errno.EINVAL, "it is neither a file nor a pipe", str(path))
    return not stat.S_ISREG(mode)


def _open_existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)


def _write_all(stream: IO[bytes], data: memoryview) -> None:
    while data:
        data = data[stream.write(data) :]


def _keep_permissions(file: BinaryIO, path: Path) -> None:
    """Give a new file the permissions of the regular file that it will replace."""
    try:
        before = path.lstat()
    except OSError:
        return
    if stat.S_ISREG(before.st_mode) and hasattr(os, "fchmod"):
        with suppress(OSError):  # not every file system has permissions
            os.fchmod(file.fileno(), before.st_mode & 0o777)


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
    strict: bool = False,
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
      error: raised if the file is not UTF-8, not JSON, or holds something else than an object.
      folder, limit: see open_guarded.
      strict: see parse_json.
    Raises: FileNotFoundError: no such file. OSError: it cannot be read.
    """
    content = read_guarded(path, error=error, folder=folder, limit=limit)
    with parsing(error, path):
        value = parse_json(content.decode("utf-8-sig"), strict=strict)
    if not isinstance(value, dict):
        raise error(f"{path} is damaged: it holds no JSON object")
    return value


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
