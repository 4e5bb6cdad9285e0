"""The peak of resident memory while an input is read, where the system can say it (Linux)."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Bytes above the resident memory of the beginning."""

    bytes: int = 0


class PeakMemory:
    """Finds out cheaply whether a process has used more memory than it may.

    Args:
      limit: bytes above what the process has now.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._supported = _STATUS.exists() and _RESET.exists()
        self._base = 0
        self._begin()

    def exceeded(self) -> bool:
        """Whether the peak since the last call with this answer is above the limit.

        The memory of the process itself may have grown; `measured` tells.
        """
        if not self._supported or _peak() - self._base <= self._limit:
            return False
        self._begin()
        return True

    @contextmanager
    def measured(self) -> Iterator[Peak]:
        """Measure a block exactly."""
        found = Peak()
        gc.collect()
        before = self._begin()
        yield found
        if self._supported:
            found.bytes = _peak() - before
        self._begin()

    def _begin(self) -> int:
        if self._supported:
            _RESET.write_text("5")  # the peak becomes the present size
            self._base = _peak()
        return self._base


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
