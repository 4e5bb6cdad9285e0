"""One block of scratch memory for all engines on a GPU, which run one at a time."""

from __future__ import annotations

import threading

from sdexport.engines.cuda_device import DeviceBuffer


class Activations:
    """Scratch memory that engines use in turn. Hold `lock` while an engine uses it.

    generation: changes when the block is replaced by a larger one; older addresses are invalid.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.generation = 0
        self._users = 0
        self._buffer: DeviceBuffer | None = None

    def join(self) -> None:
        """Register a user."""
        with self.lock:
            self._users += 1

    def leave(self) -> None:
        """Unregister a user; the last one frees the memory."""
        with self.lock:
            self._users -= 1
            if self._users == 0:
                self._free()

    def reserve(self, size: int) -> int:
        """The address of at least `size` bytes; no engine may be running."""
        with self.lock:
            if self._buffer is None or self._buffer.size < size:
                self._free()
                self._buffer = DeviceBuffer(size)
                self.generation += 1
            return self._buffer.address

    @property
    def size(self) -> int:
        """Bytes that are allocated."""
        return 0 if self._buffer is None else self._buffer.size

    def _free(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.close()


_shared: dict[int, Activations] = {}
_lock = threading.Lock()


def shared_activations(device: int) -> Activations:
    """The scratch memory of a GPU."""
    with _lock:
        return _shared.setdefault(device, Activations())
