"""A lock between processes, which ends with the process that holds it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdexport.engines.errors import EngineError


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file during a block, and remove it afterwards.

    Args:
      what: what is being built, for the message.

    Raises: EngineError: another process holds it. OSError: it cannot be written.
    """
    file = _acquire(path, what)
    try:
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        # before the lock is released, so that the next holder creates a new file
        path.unlink(missing_ok=True)
        os.close(file)


def _acquire(path: Path, what: str) -> int:
    """An open and locked file descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _try_lock(file)
        except OSError:
            holder = os.read(file, 20).decode("ascii", "replace").strip()
            os.close(file)
            by = f" (process {holder})" if holder else ""
            raise EngineError(
                f"{what} is being built by another process{by}; wait for it"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            return file
        os.close(file)  # its holder has removed it meanwhile


def _try_lock(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
