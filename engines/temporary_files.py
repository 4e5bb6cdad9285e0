"""Temporary files and folders: unique names, and nothing that stays behind.

A temporary file is created exclusively, so a link or a file at its name is never opened. On POSIX
systems it is locked while it is written: what is not locked was left by a process that was killed,
and is deleted before the next file of the same name is written. On Windows, where this is not
tested, an open file cannot be deleted.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sdexport.engines.exit_actions import UNDO, delete

if sys.platform != "win32":
    import fcntl

TEMPORARY = ".part"
"""At the end of the names of temporary files."""
_NAME_BYTES = 100
"""Of the file's own name in the temporary one; names have at most 255 bytes."""


@contextmanager
def temporary_file(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file next to `path` for its future content, which is deleted if it is still there.

    Yields: its name, and the file, open for writing; the caller closes and renames it.
    Raises: OSError: the folder is missing or cannot be written.
    """
    delete_abandoned_files(path.parent, path.name)
    while True:
        name = path.with_name(f".{shortened(path.name)}.{secrets.token_hex(8)}{TEMPORARY}")
        created = name.open("xb")
        try:
            with UNDO.during(partial(delete, name)), created as file, _locked_copy(file):
                if _is_file(name, file.fileno()):  # else another process took it for abandoned
                    yield name, file
                    return
        finally:
            with suppress(OSError):  # it is then abandoned
                name.unlink(missing_ok=True)


@contextmanager
def temporary_folder(prefix: str, parent: Path | None = None, suffix: str = "") -> Iterator[Path]:
    """A new folder, which is deleted after the block if it is still there.

    Args:
      prefix, suffix: of its name. parent: default the system's folder for temporary files.
    Raises: OSError: the parent is missing or cannot be written.
    """
    import shutil
    import tempfile  # this module is imported at every start, these two only when needed

    folder = Path(tempfile.mkdtemp(suffix, prefix, parent))
    try:
        with UNDO.during(partial(delete, folder)):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shortened(name: str) -> str:
    """The beginning of a file name, to which some more characters can be added."""
    return name.encode(errors="ignore")[:_NAME_BYTES].decode(errors="ignore")


def delete_abandoned_files(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files of a folder that killed processes left.

    Args:
      name: only those for a file of this name.
    """
    of_file = ".+" if name is None else re.escape(shortened(name))
    temporary = re.compile(rf"\.{of_file}\.[0-9a-f]{{16}}{TEMPORARY}", re.DOTALL)
    with suppress(OSError), os.scandir(folder) as entries:
        for found in [entry.name for entry in entries if temporary.fullmatch(entry.name)]:
            with suppress(OSError):
                _delete_unlocked(folder / found)


def _delete_unlocked(path: Path) -> None:
    """Delete a file that no process holds a lock on. Raises: OSError: it is locked."""
    if sys.platform == "win32":
        path.unlink()
        return
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_file(path, file):
            path.unlink()
    finally:
        os.close(file)


@contextmanager
def _locked_copy(file: BinaryIO) -> Iterator[None]:
    """Lock a file until the block ends, also when `file` is closed in it."""
    if sys.platform == "win32":
        yield
        return
    copy = os.dup(file.fileno())
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(copy, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):  # its content was flushed before
            os.close(copy)


def _is_file(path: Path, file: int) -> bool:
    """Whether `path` is a regular file, and the one that is open."""
    with suppress(OSError):
        there = path.lstat()
        return stat.S_ISREG(there.st_mode) and os.path.samestat(there, os.fstat(file))
    return False
