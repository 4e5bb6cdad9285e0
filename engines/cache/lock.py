"""A lock between processes, which ends with the process that holds it."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdexport.engines.errors import EngineError


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file during a block, and remove it afterwards.

    Args:
      what: what is being built, for the message.

    Raises: EngineError: another process holds it, or there is something else at its name.
      OSError: it cannot be written, or the file system has no locks.
    """
    file = _acquire(path, what)
    try:
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        # before the lock is released, so that the next holder creates a new file
        with suppress(OSError):  # what stays behind is not locked
            path.unlink(missing_ok=True)
        os.close(file)


def _acquire(path: Path, what: str) -> int:
    """An open and locked file descriptor."""
    while True:
        file = _opened(path)
        try:
            try_lock(file)
        except OSError as error:
            holder = os.read(file, 20).decode("ascii", "replace").strip()
            os.close(file)
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise OSError(error.errno, error.strerror, str(path)) from error
            by = f" (process {holder})" if holder else ""
            raise EngineError(
                f"{what} is being built by another process{by}; wait for it"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.lstat()):
                return file
        os.close(file)  # its holder has removed it meanwhile


def _opened(path: Path) -> int:
    """The file, which is created if it is missing; links are not followed.

    Raises: EngineError: it is no file that `locked` has made.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if not path.is_symlink():
        file = os.open(path, flags, 0o644)
        state = os.fstat(file)
        if stat.S_ISREG(state.st_mode) and state.st_nlink <= 1:  # 0: removed meanwhile
            return file
        os.close(file)
    raise EngineError(f"{path} is not a lock file of sdexport: delete it, and build again")


def try_lock(file: int) -> None:
    """Lock an open file until it is closed, or until the process ends.

    Raises: OSError: another process holds it, or the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
