"""The file in which OpenVINO stores a compiled graph, and mapping it into memory.

OpenVINO's own cache writes such a file while it compiles: one line about itself, then what the
plugin of the processor has exported. Imported from mapped memory, its constants are used where
they are.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Self

import numpy as np

from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import open_guarded

SUFFIX = ".blob"
_LONGEST_LINE = 4096
_LINE = b"<?xml"
_MAGIC = b"RR_UPCVO"
_TITLE = struct.Struct("<IQ")
"""Behind the magic: a version, and the length of a text about the library."""
_PLACES = struct.Struct("<6Q")
"""Behind that text: offset and size of settings, constants and graph, from here on."""


def plugin_offset(path: Path) -> int:
    """Where the plugin's own data begins in a file of OpenVINO's cache.

    Raises: ValueError: it has another form, or is not complete. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _plugin_offset(file)


def _plugin_offset(file: BufferedReader) -> int:
    head, size = file.read(2 * _LONGEST_LINE), os.fstat(file.fileno()).st_size
    start = head.find(b"\n") + 1
    if not head.startswith(_LINE) or not 0 < start <= _LONGEST_LINE:
        raise ValueError("it does not begin with OpenVINO's line")
    if not head.startswith(_MAGIC, start):
        raise ValueError("the processor's plugin has written another form")
    try:
        _, length = _TITLE.unpack_from(head, start + len(_MAGIC))
        places = start + len(_MAGIC) + _TITLE.size + length
        *_, offset, last = _PLACES.unpack_from(head, places)
    except struct.error as error:
        raise ValueError("its head is damaged") from error
    if places + offset + last != size:
        raise ValueError(f"it has {size} bytes and should have {places + offset + last}")
    return start


@dataclass(frozen=True)
class MappedBlob:
    """A mapped file, from which OpenVINO imports; it must be kept as long as the compiled graph."""

    mapping: mmap.mmap
    tensor: Any
    array: np.ndarray

    @classmethod
    def open(cls, path: Path, tensor: Any) -> Self:
        """Map a file whose hash was compared.

        Args:
          tensor: the class openvino.Tensor.
        Raises: EngineError: no regular file, or of another form. OSError: it cannot be read.
        """
        with open_guarded(path, error=EngineError, folder=path.parent) as file:
            try:
                offset = _plugin_offset(file)
            except ValueError as error:
                raise EngineError(f"{path} is no compiled graph: {error}") from error
            # copied on write, as OpenVINO takes writeable memory only; it writes nothing
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        array = np.frombuffer(mapping, np.uint8)[offset:]
        return cls(mapping, tensor(array, shared_memory=True), array)
