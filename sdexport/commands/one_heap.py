"""Letting all memory of this process come from one heap; see engines/pages_ahead.py."""

from __future__ import annotations

import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt."""
_MIB = 2**20
_SETTINGS = {_ARENA_MAX: 1, _MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 64 * _MIB}
"""The last two are what the C library arrives at by itself in a process with large arrays."""


def use_one_heap() -> None:
    """Set up the C library, and let memory be provided ahead; glibc only.

    Before NumPy is imported, which starts threads.
    """
    if sys.platform != "linux":
        return
    import ctypes

    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    if all(library.mallopt(name, value) for name, value in _SETTINGS.items()):
        from sdexport.engines import pages_ahead

        pages_ahead.enable()
