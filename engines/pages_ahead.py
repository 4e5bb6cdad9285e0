"""Memory whose pages the system provides before a library fills them.

OpenVINO copies each weight into the layout of its kernels. A page of that copy is provided when it
is first written to, which takes a good part of the time to open a large graph, on the core that
opens it. Here another thread asks for the pages, in the C library's heap, while the graph opens.

For that all memory must come from one heap, which changes how the C library allocates in the whole
process: only the command line does that (one_heap.py there), in a process of its own. glibc only.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sdexport.engines.available_memory import available_bytes
from sdexport.engines.guarded_files import MIB

SMALLEST = 500_000_000
"""Bytes from which on it is done."""
MOST = 2_000_000_000
"""Bytes for which it is done; the C library counts them in an int."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of mallopt."""
_LARGEST, _KEPT = 31 * MIB, 64 * MIB
"""An allocation that comes from the heap, and the free bytes that stay at its end; see one_heap.py
of the command line."""
_MOST_PROBES = 4
"""Allocations of that size after which the heap was extended, if it can be."""
_USUAL_PAD, _USUAL_MAPPINGS = 128 * 1024, 65536
_NEVER = 2**31 - 1
_POPULATE_WRITE = 23
"""Of madvise: provide pages for writing; Linux 5.14."""
_STEP = 4 * MIB
"""Bytes at once; other threads that map memory wait for that."""
_AHEAD, _PAUSE = 192 * MIB, 0.005
"""Bytes that are provided and not used yet, at most; seconds between two looks at what is used."""
_lock = threading.Lock()
_is_enabled = False


def enable() -> None:
    """Let pages be provided from now on: all memory comes from one heap, see one_heap.py."""
    global _is_enabled
    _is_enabled = _library() is not None


@contextmanager
def pages_ahead(size: int) -> Iterator[None]:
    """Provide pages for so many bytes, in a thread, for what a block allocates.

    What it does not use is given back at its end. Without `enable`, or for one block while another
    one runs, nothing is done.
    """
    library = _library() if _is_enabled and size >= SMALLEST and _has_room(size) else None
    if library is None or not _lock.acquire(blocking=False):
        yield
        return
    done = threading.Event()
    thread: threading.Thread | None = None
    try:
        thread = _started(library, min(size, MOST), done)
        yield
    finally:
        try:
            done.set()
            if thread is not None:
                thread.join()
        finally:
            library.mallopt(_MMAP_MAX, _USUAL_MAPPINGS)
            library.mallopt(_TOP_PAD, _USUAL_PAD)
            library.mallopt(_TRIM_THRESHOLD, _KEPT)
            library.malloc_trim(0)
            _lock.release()


def _started(library: Any, size: int, done: threading.Event) -> threading.Thread | None:
    """The thread that provides pages; None if it cannot be started."""
    start, end = _extended(library, size)
    arguments = (library, start, end, done)
    thread = threading.Thread(target=_provide, args=arguments, name="sdexport-pages", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system has no thread left
        return None
    return thread


def _has_room(size: int) -> bool:
    available = available_bytes()
    return available is None or size < available / 2


def give_back() -> None:
    """Give free memory in the heap back to the system, where `enable` has put all into it.

    While a block of `pages_ahead` runs, that is left to its end.
    """
    library = _library() if _is_enabled else None
    if library is not None and _lock.acquire(blocking=False):
        try:
            library.malloc_trim(0)
        finally:
            _lock.release()


def _extended(library: Any, size: int) -> tuple[int, int]:
    """The free end of the heap, which is extended by `size`; empty if that is not possible."""
    library.mallopt(_MMAP_MAX, 0)  # large copies come from the heap too
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    library.mallopt(_TOP_PAD, size)
    before, places = library.sbrk(0), list[int]()
    while library.sbrk(0) == before and len(places) < _MOST_PROBES:
        places.append(library.malloc(_LARGEST) or 0)
    end = library.sbrk(0)
    library.mallopt(_TOP_PAD, _USUAL_PAD)  # each extension would be as large
    for place in places:
        library.free(place)
    is_heap = places[-1] and 0 < end - places[-1] <= size + _LARGEST + _KEPT
    return (places[-1] if is_heap else end), end


def _provide(library: Any, start: int, end: int, done: threading.Event) -> None:
    """Ask for the pages from `start` to `end`, never much farther than what is in use."""
    place = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    while place + _STEP < end:
        used = library.sbrk(0) - library.mallinfo2().keepcost
        limit = min(used + _AHEAD, end)
        if place + _STEP >= limit and done.wait(_PAUSE):
            return
        while place + _STEP < limit:
            if done.is_set() or library.madvise(place, _STEP, _POPULATE_WRITE):
                return
            place += _STEP


class _MallInfo(ctypes.Structure):
    """What mallinfo2 returns. keepcost: free bytes at the end of the heap."""

    _fields_ = [(name, ctypes.c_size_t) for name in (*"0123456", "used", "free", "keepcost")]


@cache
def _library() -> Any:
    """The C library with the functions that are needed; None if it is not glibc 2.33 or later."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    names = ("mallopt", "malloc_trim", "mallinfo2", "malloc", "free", "sbrk", "madvise")
    if not all(hasattr(library, name) for name in names):
        return None
    library.mallinfo2.restype = _MallInfo
    library.malloc.restype = library.sbrk.restype = ctypes.c_void_p
    library.malloc.argtypes = library.malloc_trim.argtypes = [ctypes.c_size_t]
    library.free.argtypes, library.sbrk.argtypes = [ctypes.c_void_p], [ctypes.c_ssize_t]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library
