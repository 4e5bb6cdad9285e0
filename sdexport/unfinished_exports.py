"""The hidden folder in which an export works, and deleting those of exports that were killed.

The folder holds a marker file, which the running export keeps locked: the lock ends with its
process, however that ends. A folder whose marker is not locked belongs to no process any more.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdexport.engines.cache.lock import try_lock
from sdexport.engines.errors import PackageError, SDExportError
from sdexport.engines.exit_actions import delete
from sdexport.engines.guarded_files import JSON_LIMIT, open_guarded, read_limited
from sdexport.engines.temporary_files import shortened
from sdexport.runtime.packages.unfinished import UNFINISHED, marker_content

logger = logging.getLogger(__name__)

PACKAGE, REPLACED = "package", "replaced"
"""Folders in the hidden folder: the new package, and where nothing can be exchanged the old one."""
_LOCK_TRIES, _LOCK_PAUSE = 20, 0.05


@contextmanager
def hidden_folder(destination: Path) -> Iterator[Path]:
    """Create the folder next to `destination`, and delete it when the block ends.

    Raises: OSError: it cannot be created.
    """
    marker: int | None = None
    while marker is None:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(destination), dir=destination.parent))
        try:
            marker = _mark(folder, destination)
        except FileNotFoundError:  # another export took it for abandoned
            continue
        except BaseException:
            delete_hidden(folder)
            raise
    try:
        yield folder
    finally:
        delete_hidden(folder, marker)


def sweep(destination: Path) -> None:
    """Delete what killed exports to the same destination left behind.

    If one was killed between the two moves of `replace_folder`, the package that it was about to
    replace is moved back first.
    """
    pattern = re.compile(re.escape(_prefix(destination)) + "[a-z0-9_]{8}")
    with suppress(OSError):  # whatever stays is tried again by the next export
        for folder in destination.parent.iterdir():
            if pattern.fullmatch(folder.name) and not folder.is_symlink() and folder.is_dir():
                _sweep(folder, destination)


def _sweep(folder: Path, destination: Path) -> None:
    try:
        with open_guarded(
            folder / UNFINISHED, error=PackageError, folder=folder, limit=JSON_LIMIT
        ) as file:
            content = read_limited(file, folder / UNFINISHED, error=PackageError, limit=JSON_LIMIT)
            marker = os.dup(file.fileno())
    except FileNotFoundError:
        with suppress(OSError):
            folder.rmdir()  # fails if anything is in it
        return
    except (OSError, SDExportError):  # locked on Windows; no regular file
        return
    try:
        try_lock(marker)
        if _is_of(content, destination.name):
            if (folder / REPLACED).is_dir() and not os.path.lexists(destination):
                (folder / REPLACED).rename(destination)
                logger.warning("%s: moved back what an interrupted export replaced", destination)
            delete_hidden(folder, marker)
            marker = -1
    except OSError:  # its export is running
        pass
    finally:
        if marker >= 0:
            os.close(marker)


def _prefix(destination: Path) -> str:
    """How names of hidden folders for a destination begin; a long name is cut."""
    return f".{shortened(destination.name)}."


def _mark(folder: Path, destination: Path) -> int:
    """Write the marker file. Returns: its descriptor, which holds the lock.

    Its content is written under the lock. Where nothing can be locked it names no destination, so
    nobody takes the folder for an abandoned one.

    Raises: FileNotFoundError: another export has deleted the folder before the file was locked.
    """
    marker = os.open(
        folder / UNFINISHED, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644
    )
    try:
        locked = _lock(marker)
        if not os.path.samestat(os.fstat(marker), (folder / UNFINISHED).lstat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        os.write(marker, marker_content(destination.name if locked else None))
    except BaseException:
        os.close(marker)
        raise
    return marker


def _lock(marker: int) -> bool:
    for _ in range(_LOCK_TRIES):
        with suppress(OSError):  # another export looks at it; or nothing can be locked here
            try_lock(marker)
            return True
        time.sleep(_LOCK_PAUSE)
    return False


def _is_of(content: bytes, destination: str) -> bool:
    """Whether a marker is that of an export to a destination, or the beginning of one."""
    beginning = marker_content(destination).rpartition(b'"process"')[0]
    if beginning.startswith(content) or content.startswith(beginning):
        return True
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("destination") == destination


def delete_hidden(folder: Path, marker: int | None = None) -> None:
    """Delete the folder, the marker last; links in it are not followed.

    Args:
      marker: the descriptor of the marker file, which is closed.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name != UNFINISHED:
                delete(path)
    if marker is not None and os.name == "nt":  # where no open file can be deleted
        os.close(marker)
        marker = None
    with suppress(OSError):
        if not {each.name for each in folder.iterdir()} - {UNFINISHED}:
            (folder / UNFINISHED).unlink(missing_ok=True)
            folder.rmdir()
    if marker is not None:  # until now nobody else could lock it
        os.close(marker)
    if folder.exists():
        logger.warning("%s could not be deleted; the next export tries again", folder)
