"""Weights that a rewrite computes, in a file without a name instead of in private memory.

OpenVINO keeps every constant of a model that it has compiled, next to the copy that its kernels
read. In a mapped file those constants leave memory as soon as they are not read any more.
"""

from __future__ import annotations

import logging
import mmap
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from sdexport.engines.messages import one_line

SMALLEST = 2**20
"""Bytes from which on an array goes to the file."""
_log = logging.getLogger(__name__)
_current: ContextVar[Scratch | None] = ContextVar("scratch", default=None)


class Scratch:
    """Arrays in mapped files that have no name and are gone with their last mapping.

    Args:
      folder: where the files are; None for the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._usable = folder, hasattr(mmap, "MAP_SHARED")
        self.mappings: list[mmap.mmap] = []
        self._arrays: list[np.ndarray] = []  # OpenVINO keeps addresses, not arrays

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        """An array without content; in memory if it is small, or if there is no room on disk."""
        size = int(np.prod(shape)) * dtype.itemsize
        if size < SMALLEST or not self._usable:
            return self._in_memory(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                _allocate(file.fileno(), size)
                mapping = mmap.mmap(file.fileno(), size)
        except (OSError, ValueError) as error:
            _log.info("rewritten weights stay in memory: %s", one_line(error))
            self._usable = False
            return self._in_memory(shape, dtype)
        self.mappings.append(mapping)
        return np.frombuffer(mapping, dtype).reshape(shape)

    def _in_memory(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        self._arrays.append(np.empty(shape, dtype))
        return self._arrays[-1]


@contextmanager
def scratch(folder: Path | None) -> Iterator[Scratch]:
    """Let `stored` in this block, in this thread, put arrays into files in a folder."""
    new = Scratch(folder)
    token = _current.set(new)
    try:
        yield new
    finally:
        _current.reset(token)


def current() -> Scratch | None:
    """That of the block of `scratch` around the caller."""
    return _current.get()


def stored(values: np.ndarray) -> np.ndarray:
    """A contiguous, writeable array of these values: themselves, or a copy in the file."""
    open_now = _current.get()
    if open_now is not None and values.nbytes >= SMALLEST:
        copy = open_now.empty(values.shape, values.dtype)
        np.copyto(copy, values)
        return copy
    return np.require(values, requirements=("C", "W"))


def _allocate(file: int, size: int) -> None:
    """Reserve the file's blocks: a full disk is an error here, and no signal later.

    Raises: OSError: the disk is full.
    """
    import os

    if sys.platform != "win32" and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)
