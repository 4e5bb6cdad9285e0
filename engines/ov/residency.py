"""Keeping mapped weights out of memory while OpenVINO compiles them.

OpenVINO reads each weight once and copies it into the layout of its kernels. The pages that it has
read stay in memory until the system needs the room, so a process seems to need its weights twice.
Here they are dropped again and again meanwhile: the peak is that of the copies.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

MOST_BYTES = 64 * 2**20
"""Mapped bytes that stay in memory between two looks."""
INTERVAL = 0.02
"""Seconds between two looks."""


@contextmanager
def dropped(drop: Callable[[], object], resident: Callable[[], int]) -> Iterator[None]:
    """Call `drop` during a block whenever more is resident than MOST_BYTES, and at its end.

    Args:
      drop: drops pages that the block keeps mapped. resident: bytes of mapped files in memory.
    """
    done, base = threading.Event(), resident()

    def watch() -> None:
        while not done.wait(INTERVAL):
            if resident() - base > MOST_BYTES:
                drop()

    thread = threading.Thread(target=watch, name="sdexport-residency", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        drop()


def drop_pages(mappings: Sequence[mmap.mmap]) -> None:
    """Drop the pages of mapped files; they are read again when they are used."""
    if hasattr(mmap.mmap, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        for mapping in list(mappings):
            mapping.madvise(mmap.MADV_DONTNEED)
