"""What tells one state of a file from every other one, also for a later process.

The kernel sets the time of a file's last change (ctime), and no program can set it back. It tells
every change only where

- the file system keeps it, counts it in less than two seconds and also sets it for writes through
  a memory mapping: ext2 to ext4, XFS, Btrfs and F2FS on Linux do. On tmpfs such writes change no
  time; read-only images such as squashfs hold whatever times they were made with; a server's clock
  and caches stand between us and a network file system;
- the last change is longer ago than the time is exact, and longer than one write may take, or the
  file is known to be complete (`state_of_written`);
- the machine was not restarted: a crash may lose a time that was not on disk, and what another
  system wrote in between is not known.

All other files have no state that can be remembered.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SETTLED_NS = 10 * 10**9
"""Time since the last change from which on a file is remembered: one write may take seconds, and
sets the time when it begins."""
EXACT_NS = 10**8
"""More than any of these file systems' clocks are inexact by: a hundredth of a second."""
_FILE_SYSTEMS = {0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0xF2F52010: "f2fs"}
"""Those that keep the time of every change, by the number that statfs reports."""
_STATFS_BYTES = 512
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class FileState:
    """What is compared. boot: since this start of the machine, see `_boot`."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    boot: str


def state_of(file: int) -> FileState | None:
    """The state of an open file; None if a later change of it might not show.

    To be taken before the file is read, and again after it.
    """
    return settled(present_state(file))


def present_state(file: int) -> FileState | None:
    """The state of an open file, to compare with one that was remembered.

    It may be as young as it likes: the remembered one was settled, or that of a complete file.
    """
    try:
        if _keeps_times(file):
            os.fsync(file)  # then the next write through a mapping sets the time again
    except OSError:
        return None
    return _state(file)


def settled(state: FileState | None) -> FileState | None:
    """The state itself, if a later change of the file would show; else None."""
    if state is None or time.time_ns() - max(state.mtime_ns, state.ctime_ns) <= SETTLED_NS:
        return None  # a time in the future too
    return state


def state_of_written(file: int) -> FileState | None:
    """The state of a file that this process has completed, hashed and then renamed, in this order.

    It need not be old. A later change of its content sets its mtime to a time after the renaming,
    which is that of its ctime. So it shows if its mtime lies before that by more than such times
    are inexact; if not, there is no state.
    """
    state = _state(file)
    if state is None or state.ctime_ns - state.mtime_ns <= EXACT_NS:
        return None
    return state if time.time_ns() >= state.ctime_ns else None


def _keeps_times(file: int) -> bool:
    return bool(_boot()) and _file_system(file) in _FILE_SYSTEMS


def _state(file: int) -> FileState | None:
    """The present state of an open file; None where it cannot be relied on."""
    if not _keeps_times(file):
        return None
    status = os.fstat(file)
    return FileState(
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        _boot(),
    )


@cache
def _boot() -> str:
    """An id of the time since the machine was started; "" outside Linux."""
    if sys.platform != "linux":
        return ""
    with suppress(OSError, UnicodeDecodeError):
        return _BOOT.read_text(encoding="ascii").strip()
    return ""


def _file_system(file: int) -> int:
    """The number of the kind of file system that an open file is on; 0 if it is not known."""
    if sys.platform != "linux":
        return 0
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    with suppress(OSError, AttributeError):
        if ctypes.CDLL(None).fstatfs(file, buffer) == 0:
            # the first field, a long; in the upper half of it are only signs
            word = ctypes.c_long.from_buffer(buffer).value
            return word & 0xFFFFFFFF
    return 0
