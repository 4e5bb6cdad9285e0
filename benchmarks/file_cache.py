"""The system's file cache: fill it with files, drop files from it, and see what it holds."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

BLOCK = 1 << 24
METHOD = (
    "cold: sync and posix_fadvise(DONTNEED) on every file of the model; programs and libraries "
    "stay cached. warm: so as well, then every file that the program reads of the model is read"
)


def files_of(folders: Iterable[Path]) -> Iterator[Path]:
    """The regular files in these folders; a folder that is missing has none."""
    for folder in folders:
        yield from (f for f in sorted(folder.rglob("*")) if f.is_file())


def warm(folders: Iterable[Path]) -> None:
    """Read every file."""
    buffer = bytearray(BLOCK)
    for path in files_of(folders):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(folders: Iterable[Path]) -> None:
    """Drop every file from the cache; pages that another process has mapped remain."""
    os.sync()  # only clean pages can be dropped
    for path in files_of(folders):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(folders: Iterable[Path]) -> float:
    """Share of the files' pages that are in the cache."""
    total = cached = 0
    for path in files_of(folders):
        pages = _cached_pages(path)
        total += len(pages)
        cached += sum(page & 1 for page in pages)
    return cached / total if total else 0.0


def _cached_pages(path: Path) -> bytes:
    """A byte for each page of the file; its lowest bit says whether it is cached (mincore)."""
    size = path.stat().st_size
    if not size:
        return b""
    libc = ctypes.CDLL(None, use_errno=True)
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        status = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), found
        )
        del first  # or the mapping cannot be closed
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return bytes(found)
