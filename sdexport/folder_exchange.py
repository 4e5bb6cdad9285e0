"""Putting a folder in the place of another one, so that a whole one is there at any time."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

_NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What a kernel, a file system or a container's filter gives where folders cannot be exchanged."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_RENAME_SWAP = 2
_SYSTEM_CALLS = {"x86_64": 316, "aarch64": 276}
"""Numbers of renameat2, for C libraries without a function of that name."""


def replace_folder(new: Path, destination: Path, old: Path) -> None:
    """Move `new` to `destination`, where another folder is.

    On Linux and macOS the two are exchanged in one step, after which the replaced folder is at
    `new`. Where the system or the file system cannot do that (Windows, some network file systems),
    the replaced folder is moved to `old` first; a process that is killed between these two steps
    leaves it there, and nothing at `destination`.

    Raises: OSError: a folder cannot be moved; `destination` is what it was before.
    """
    try:
        if exchange(new, destination):
            return
    except FileNotFoundError:  # another process has just moved it away
        new.rename(destination)
        return
    destination.rename(old)
    try:
        new.rename(destination)
    except BaseException:
        if not os.path.lexists(destination):
            old.rename(destination)
        raise


def exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step, on Linux and macOS.

    The call on macOS is not tested.

    Returns: whether that is supported; otherwise nothing has changed.
    Raises: OSError: one does not exist, or cannot be moved.
    """
    if sys.platform not in ("linux", "darwin"):
        return False
    number = _exchange(os.fsencode(first), os.fsencode(second))
    if number in _NOT_SUPPORTED:
        return False
    if number:
        raise OSError(number, os.strerror(number), str(first), None, str(second))
    return True


def sync_tree(folder: Path) -> None:
    """Write a folder and all that is in it to disk, so that a power failure cannot take parts."""
    for path in _walk(folder):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Write a file, or the entries of a folder, to disk; folders not on Windows."""
    if os.name == "nt" and path.is_dir():
        return
    # Windows flushes only files that are open for writing
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:  # some file systems cannot sync a folder
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def _exchange(first: bytes, second: bytes) -> int:
    """Returns: 0 or the error number."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    path = ctypes.c_char_p
    if sys.platform == "darwin":
        call, arguments = "renamex_np", (path(first), path(second), ctypes.c_uint(_RENAME_SWAP))
    else:
        place, flag = ctypes.c_int(_AT_FDCWD), ctypes.c_uint(_RENAME_EXCHANGE)
        call, arguments = "renameat2", (place, path(first), place, path(second), flag)
    if hasattr(library, call):
        result = getattr(library, call)(*arguments)
    elif sys.platform == "linux" and platform.machine() in _SYSTEM_CALLS:
        result = library.syscall(ctypes.c_long(_SYSTEM_CALLS[platform.machine()]), *arguments)
    else:
        return errno.ENOSYS
    return ctypes.get_errno() if result else 0


def _walk(folder: Path) -> Iterator[Path]:
    """Every file and folder below a folder; links are left out and not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry))
            if not entry.is_symlink():
                yield Path(entry)
