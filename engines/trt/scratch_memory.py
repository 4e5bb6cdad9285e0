"""One block of scratch memory for every engine on a GPU: they run one after the other anyway."""

from __future__ import annotations

import threading

from sdexport.engines.cuda_device import DeviceBuffer


class Activations:
    """Memory that engines take turns in. Hold `lock` while an engine works in it.

    generation: changes when the block was replaced by a larger one; addresses from before are void.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.generation = 0
        self._users = 0
        self._buffer: DeviceBuffer | None = None

    def join(self) -> None:
        with self.lock:
            self._users += 1

    def leave(self) -> None:
        """The last one to leave frees the memory."""
        with self.lock:
            self._users -= 1
            if self._users == 0:
                self._free()

    def reserve(self, size: int) -> int:
        """The address of at least `size` bytes; call with no engine's work under way."""
        with self.lock:
            if self._buffer is None or self._buffer.size < size:
                self._free()
                self._buffer = DeviceBuffer(size)
                self.generation += 1
            return self._buffer.address

    @property
    def size(self) -> int:
        return 0 if self._buffer is None else self._buffer.size

    def _free(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.close()


_shared: dict[int, Activations] = {}
_lock = threading.Lock()


def shared_activations(device: int) -> Activations:
    """The block of a GPU."""
    with _lock:
        return _shared.setdefault(device, Activations())
