"""What tells one state of a file from every other one, also for a later process.

The kernel sets the time of a file's last change (ctime), and no program can set it back. It tells
every change only where

- the file system keeps it, counts it in less than two seconds and also sets it for writes through
  a memory mapping: ext2 to ext4, XFS, Btrfs and F2FS on Linux do. On tmpfs such writes change no
  time; read-only images such as squashfs hold whatever times they were made with; a server's clock
  and caches stand between us and a network file system;
- the last change is longer ago than the time is exact, and longer than one write may take;
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
    boot = _boot()
    if not boot or _file_system(file) not in _FILE_SYSTEMS:
        return None
    try:
        os.fsync(file)  # then the next write through a mapping sets the time again
    except OSError:
        return None
    status = os.fstat(file)
    latest = max(status.st_mtime_ns, status.st_ctime_ns)
    if time.time_ns() - latest <= SETTLED_NS:  # a time in the future too
        return None
    return FileState(
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        boot,
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
