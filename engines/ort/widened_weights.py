"""Half-precision weights as float32, given to ONNX Runtime without a copy of their own in memory.

On the CPU ONNX Runtime computes a float16 graph in float32. Left to itself it converts every weight
first and then copies it into the layout of its kernels: for a moment there are two copies in
float32, and the file. Here the weights are converted into a file without a name, whose pages are
dropped from memory while ONNX Runtime copies them. The peak is that of a float32 graph. And nothing
is rounded to float16 between two operators, which ONNX Runtime itself does at some places.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import MIB, open_guarded
from sdexport.engines.onnx_file.float32_graph import in_float32
from sdexport.engines.onnx_file.graph_survey import GraphSurvey, survey
from sdexport.engines.onnx_file.tensor_checks import ExternalTensor
from sdexport.engines.ov.compiled_cache import scratch_folder
from sdexport.engines.ov.residency import drop_pages, dropped
from sdexport.engines.ov.scratch import Scratch
from sdexport.engines.process_memory import mapped_files_bytes
from sdexport.engines.telemetry import import_onnxruntime

SMALLEST = 64 * MIB
"""Bytes of float16 weights from which on they are converted here."""
_FLOAT16 = 10
_EDGES = ("float32", "int64", "int32", "bool")
"""Types of inputs and outputs, which stay as they are."""
_THREADS = 4


class WidenedWeights:
    """The float16 weights of a graph's external data as float32; made in a block of `opening`.

    To be kept as long as the session is open.
    """

    def __init__(self, path: Path, found: GraphSurvey) -> None:
        tensors = [each for each in found.external if each.kind == _FLOAT16]
        self.model = in_float32(path, widened=True)
        self._scratch = Scratch(scratch_folder())
        self._sources = {
            name: _mapped(path.parent / name) for name in {each.location for each in tensors}
        }
        self._arrays = {each.name: self._empty(each) for each in tensors}
        self._tensors = tensors

    def drop(self) -> None:
        """Drop what is resident of the files; it is read again when it is used."""
        drop_pages([*self._sources.values(), *self._scratch.mappings])

    def give(self, options: Any) -> None:
        """Convert the weights and let a session use them.

        Args:
          options: of the session.
        """
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            list(pool.map(self._convert, self._tensors))
        make = import_onnxruntime().OrtValue.ortvalue_from_numpy  # which shares the memory
        self._values = [make(array) for array in self._arrays.values()]
        options.add_external_initializers(list(self._arrays), self._values)

    def _empty(self, tensor: ExternalTensor) -> np.ndarray:
        return self._scratch.empty(tensor.dims, np.dtype(np.float32))

    def _convert(self, tensor: ExternalTensor) -> None:
        count = math.prod(tensor.dims)
        stored = np.frombuffer(self._sources[tensor.location], "<f2", count, tensor.offset)
        np.copyto(self._arrays[tensor.name], stored.reshape(tensor.dims))


def widens(path: Path) -> GraphSurvey | None:
    """What a graph consists of, if its weights should be converted here; None if not."""
    if sys.platform != "linux":
        return None
    found = survey(path)
    tensors = [each for each in found.external if each.kind == _FLOAT16]
    others = [each for each in found.external if each.kind != _FLOAT16]
    whole = all(each.size == 2 * math.prod(each.dims) for each in tensors)
    edges = all(value.dtype in _EDGES for value in (*found.inputs, *found.outputs))
    is_plain = whole and edges and not found.depth and not found.functions
    if not is_plain or sum(each.size for each in tensors) < SMALLEST:
        return None
    sizes = {each.location: (path.parent / each.location).stat().st_size for each in tensors}
    inside = all(each.offset + each.size <= sizes[each.location] for each in tensors)
    links = any((path.parent / each.location).is_symlink() for each in others)
    return found if inside and not links else None


@contextmanager
def opening(path: Path, found: GraphSurvey) -> Iterator[WidenedWeights]:
    """The weights of a graph, which stay out of memory during the block that opens a session.

    Raises: EngineError: the model is damaged, or its weights are no regular file.
    """
    weights = WidenedWeights(path, found)
    with dropped(weights.drop, mapped_files_bytes):
        yield weights


def _mapped(path: Path) -> mmap.mmap:
    with open_guarded(path, error=EngineError) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
