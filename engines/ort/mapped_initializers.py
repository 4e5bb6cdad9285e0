"""Weights that ONNX Runtime uses where they are mapped, so that their memory can be freed.

ONNX Runtime copies the weights of matrix products into another layout, and keeps the copy as long
as the session is open. For a graph that runs once for many calls of another, as a text encoder
does, the copy costs more memory than it saves time: without it a product takes half as long again.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import MIB, open_guarded
from sdexport.engines.onnx_file.float32_graph import STORED
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.onnx_file.tensor_checks import ExternalTensor
from sdexport.engines.telemetry import import_onnxruntime

SMALLEST = 64 * MIB
"""Bytes of weights from which on they are not copied."""
_FLOAT = 1


class MappedInitializers:
    """Weights of a graph's external data, mapped into memory; made by `of` or `halves`.

    Attributes:
      size: bytes of the weights.
    """

    def __init__(self, values: dict[str, Any], maps: list[mmap.mmap], size: int) -> None:
        self._values, self._maps, self.size = values, maps, size

    @classmethod
    def of(cls, path: Path) -> MappedInitializers | None:
        """Map the weights of an ONNX file; None if they are small, not float32 or in the file.

        Raises: EngineError: a file of weights is too short, or no regular file.
        """
        return cls._of_tensors(path, _float32_tensors(path), "<f4") if cls.suits(path) else None

    @classmethod
    def halves(cls, path: Path, tensors: Sequence[ExternalTensor]) -> MappedInitializers | None:
        """Map float16 weights of an ONNX file, which are called `name.stored` in its graph.

        Returns: None if a file of weights is too short, or a weight is not at an even place.
        Raises: EngineError: a file of weights is no regular file.
        """
        return cls._of_tensors(path, tensors, "<f2", STORED)

    @classmethod
    def _of_tensors(
        cls, path: Path, tensors: Sequence[ExternalTensor], dtype: str, suffix: str = ""
    ) -> MappedInitializers | None:
        size = sum(each.size for each in tensors)
        maps = {name: _mapped(path.parent / name) for name in {each.location for each in tensors}}
        make = import_onnxruntime().OrtValue.ortvalue_from_numpy  # which shares the memory
        values, item = {}, np.dtype(dtype).itemsize
        for each in tensors:
            count = math.prod(each.dims)
            end = each.offset + each.size
            if each.offset % item or end > len(maps[each.location]) or each.size != item * count:
                return None  # ONNX Runtime reports it
            array = np.frombuffer(maps[each.location], dtype, count, each.offset)
            array = array.reshape(each.dims)
            values[each.name + suffix] = array, make(array)
        return cls(values, list(maps.values()), size)

    @staticmethod
    def suits(path: Path) -> bool:
        """Whether the weights of an ONNX file are large, float32 and in files of their own."""
        size = sum(each.size for each in _float32_tensors(path))
        return size >= SMALLEST and survey(path).depth == 0 and sys.platform == "linux"

    def give(self, options: Any, *, prepacking: bool = False) -> None:
        """Let a session use them; this object must be kept as long as the session is open.

        Args:
          options: of the session. prepacking: whether it may copy other weights.
        """
        if not prepacking:
            options.add_session_config_entry("session.disable_prepacking", "1")
        for name, (_, value) in self._values.items():
            options.add_initializer(name, value)

    def free(self) -> None:
        """Free their memory; it is filled from the file again when they are used."""
        for each in self._maps:
            each.madvise(mmap.MADV_DONTNEED)


def _float32_tensors(path: Path) -> list[ExternalTensor]:
    return [each for each in survey(path).external if each.kind == _FLOAT]


def _mapped(path: Path) -> mmap.mmap:
    with open_guarded(path, error=EngineError) as file:
        if not os.fstat(file.fileno()).st_size:
            raise EngineError(f"{path} is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
