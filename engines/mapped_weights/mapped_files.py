"""Files that a library maps into this process, and freeing their memory while they stay open.

Pages of a file that is mapped read-only can be dropped from memory at any time: they are read from
the file again when they are used.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from sdexport.engines.process_memory import mapped_files_bytes

Range = tuple[int, int]
"""First address, and the one behind the last."""
_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class MappedFiles:
    """Where files are mapped in this process; no ranges outside Linux, which alone reports them."""

    ranges: tuple[Range, ...]

    def free(self, room: int | None = None) -> bool:
        """Free the memory of the files; it is filled again when they are used.

        The caller must keep the mappings alive meanwhile: memory that was mapped in their place
        would lose its content.

        Args:
          room: bytes that are needed; None frees all of it.
        Returns: whether this system can.
        """
        if sys.platform != "linux":
            return False
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        enough = None if room is None else mapped_files_bytes() - room
        for start, end in self.ranges:
            madvise(start, end - start, _MADV_DONTNEED)
            if enough is not None and mapped_files_bytes() <= enough:
                break
        return True


def open_mapped(
    files: Iterable[Path], open_files: Callable[[], Opened]
) -> tuple[Opened, MappedFiles]:
    """Call a function that maps files, and find where it has mapped them.

    Args:
      files: their paths. open_files: opens them, such as a library's session.
    Returns: its result, and the new mappings.
    """
    names = {str(file.resolve()) for file in files}
    with _opening(frozenset(names)):
        before = _ranges(names)
        opened = open_files()
        return opened, MappedFiles(tuple(sorted(_ranges(names) - before)))


@cache
def _opening(names: frozenset[str]) -> AbstractContextManager[bool]:
    """A lock to hold while files are mapped, so that each caller knows which are its own."""
    return threading.Lock()


def _ranges(names: set[str]) -> set[Range]:
    """Addresses at which files of these names are mapped."""
    if sys.platform != "linux":
        return set()
    ranges = set()
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5] in names:
            start, end = (int(text, 16) for text in parts[0].split("-"))
            ranges.add((start, end))
    return ranges
