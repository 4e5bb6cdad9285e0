"""Half-precision weights as float32, given to ONNX Runtime without a copy of their own in memory.

On the CPU ONNX Runtime computes a float16 graph in float32. Left to itself it converts every weight
first and then copies it into the layout of its kernels: for a moment there are two copies in
float32, and the file. Here large factors of matrix products stay as they are, and each is converted
when it is used; the other weights are converted into a temporary file, which ONNX Runtime then
reads as it reads a float32 graph's. And nothing is rounded to float16 between two operators, which
ONNX Runtime itself does at some places.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from sdexport.engines.cache.user_cache import user_cache
from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import MIB, open_guarded
from sdexport.engines.messages import one_line
from sdexport.engines.onnx_file.float32_graph import Places, in_float32
from sdexport.engines.onnx_file.graph_survey import GraphSurvey, survey
from sdexport.engines.onnx_file.tensor_checks import ExternalTensor
from sdexport.engines.ov.residency import drop_pages, dropped
from sdexport.engines.process_memory import mapped_files_bytes
from sdexport.engines.temporary_files import temporary_file

SMALLEST = 64 * MIB
"""Bytes of float16 weights from which on they are converted here."""
SMALLEST_KEPT = 256 * 2**10
"""Bytes of the float16 weight of a matrix product from which on it stays float16. To convert it in
each call takes 0.04 to 0.5 ns for each element."""
SUBFOLDER = "weights"
"""Of the user's cache folder, for the time that a session takes to open."""
_FLOAT16, _SHAPE_OPSET = 10, 15
_EDGES = ("float32", "int64", "int32", "bool")
"""Types of inputs and outputs, which stay as they are."""
_THREADS, _PAGE = 4, 4096
_log = logging.getLogger(__name__)


def widens(path: Path) -> GraphSurvey | None:
    """What a graph consists of, if its weights should be converted here; None if not."""
    if sys.platform != "linux":
        return None
    found = survey(path)
    tensors = [each for each in found.external if each.kind == _FLOAT16]
    whole = all(each.size == 2 * math.prod(each.dims) for each in tensors)
    edges = all(value.dtype in _EDGES for value in (*found.inputs, *found.outputs))
    names = {each.name for each in found.external}
    is_plain = whole and edges and not found.depth and not found.functions
    if not is_plain or len(names) < len(found.external):
        return None
    if sum(each.size for each in tensors) < SMALLEST:
        return None
    sizes = {name: (path.parent / name).stat().st_size for name in found.locations}
    inside = all(each.offset + each.size <= sizes[each.location] for each in found.external)
    return found if inside else None


def kept_halves(found: GraphSurvey) -> list[ExternalTensor]:
    """The float16 weights that stay as they are, and are converted in each call.

    There are none where a call would convert all of them at once: float32_graph lets each wait for
    an input whose first size is not known beforehand, with an operator of opset 15.

    Args:
      found: of `widens`.
    """
    named = any(value.shape and isinstance(value.shape[0], str) for value in found.inputs)
    if not named or (found.opset or 0) < _SHAPE_OPSET:
        return []
    return [
        each
        for each in found.external
        if each.name in found.factors
        and each.kind == _FLOAT16
        and each.size >= SMALLEST_KEPT
        and len(each.dims) == 2
        and each.offset % 2 == 0
    ]


@contextmanager
def widened_model(
    path: Path, found: GraphSurvey, kept: Sequence[ExternalTensor], *, mapped: bool
) -> Iterator[tuple[bytes, Path] | None]:
    """A model in float32, and the folder of its external data, for a block that opens a session.

    Args:
      found, kept: of `widens` and `kept_halves`.
      mapped: whether the session gets the data of `kept` otherwise, and not from that folder.
    Yields: None, after a line in the log, if there is no room for the weights.
    Raises: EngineError: the model is damaged, or its weights are no regular file.
    """
    names = {each.name for each in kept}
    tensors = [each for each in found.external if not (mapped and each.name in names)]
    folder = user_cache(SUBFOLDER) or Path(tempfile.gettempdir())
    with ExitStack() as stack:
        try:
            name, _ = stack.enter_context(temporary_file(folder / path.parent.name))
            places = _write(path, tensors, names, name)
            # the session gets these; behind the end of the file, nothing can be read in their place
            behind = name.stat().st_size
            given = {each.name: (name.name, behind, each.size) for each in kept if mapped}
        except OSError as error:
            _log.info("%s: weights are converted in memory: %s", path.parent.name, one_line(error))
            yield None
            return
        yield in_float32(path, widened={**places, **given}, kept=names), folder.resolve()


def _write(
    path: Path, tensors: Sequence[ExternalTensor], kept: Container[str], name: Path
) -> Places:
    """Write weights of a graph to an empty file, in float32 where they are float16.

    Args:
      kept: names of those that are written as they are.
    """

    def is_half(tensor: ExternalTensor) -> bool:
        return tensor.kind == _FLOAT16 and tensor.name not in kept

    places, end = {}, _PAGE  # never empty
    for each in tensors:
        size = each.size * (2 if is_half(each) else 1)
        places[each.name] = name.name, end, size
        end += -(-size // _PAGE) * _PAGE
    with name.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, end)  # a full disk is an error here, no signal later
        target = mmap.mmap(file.fileno(), end)
    locations = {each.location for each in tensors}
    sources = {each: _mapped(path.parent / each) for each in locations}

    def convert(tensor: ExternalTensor) -> None:
        start = places[tensor.name][1]
        stored, new, item = ("<f2", "<f4", 2) if is_half(tensor) else ("u1", "u1", 1)
        count = tensor.size // item
        values = np.frombuffer(sources[tensor.location], stored, count, tensor.offset)
        np.copyto(np.frombuffer(target, new, count, start), values)

    maps = [target, *sources.values()]
    with (
        dropped(lambda: drop_pages(maps), mapped_files_bytes),
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
    ):
        list(pool.map(convert, tensors))
    return places


def _mapped(path: Path) -> mmap.mmap:
    with open_guarded(path, error=EngineError) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
