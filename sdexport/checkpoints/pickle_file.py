"""Weights in a pickle, read by PyTorch's loader for weights alone, within limits.

That loader runs no program of the file, but builds whatever lists and numbers it describes, and
unpacks whatever is compressed in it.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from sdexport.engines.errors import CheckpointError
from sdexport.engines.guarded_files import open_guarded
from sdexport.engines.messages import one_line, shown
from sdexport.engines.zip_members import STORED, read_directory

MAX_MEMBERS = 100_000
MAX_PROGRAM = 4 * 2**20
"""Bytes of the pickle without its tensors. That of SDXL has 0.4 MB. Loading takes up to 60 times as
much memory."""
MAX_READS = 4 * 2**20
"""Pieces that a pickle in the older format is read in: one for each of its instructions."""
_CONTAINERS: list[Any] = [torch.nn.ParameterDict]
"""Classes of PyTorch that a pickle may hold: the first textual-inversion files have this one."""
_ARCHIVE = b"PK\x03\x04"


def read_pickle(path: Path) -> Any:
    """The content of a pickle: plain values and tensors.

    Raises: CheckpointError: it holds more than that, is damaged, or beyond a limit.
    """
    try:
        with (
            open_guarded(path, error=CheckpointError) as stream,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_CONTAINERS),
        ):
            warnings.simplefilter("ignore")
            zipped = stream.read(4) == _ARCHIVE
            if zipped:
                _check_archive(stream)
            stream.seek(0)
            source: Any = path if zipped else _CountedReads(stream)
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=zipped)
        for name, tensor in tensors_in(content):
            if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
                raise ValueError(f"{shown(name)} claims more values than the file holds")
        return content
    except (CheckpointError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it calls {found[1]}" if found else "it is not a plain set of tensors"
        raise CheckpointError(
            f"{path} holds more than weights ({what}); it is not loaded, "
            "convert it to .safetensors if you trust it"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"{path} is truncated, damaged or not a file of PyTorch weights: {one_line(error, 200)}"
        ) from error


def tensors_in(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested containers, with the name or place of it or of what holds it.

    Containers may hold one another, or one container many times; each is looked into once.
    """
    seen: set[int] = set()
    left: list[tuple[str, Any]] = [("", content)]
    while left:
        name, value = left.pop()
        if torch.is_tensor(value):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += [(str(key), entry) for key, entry in entries if _may_hold(entry)]


def _may_hold(value: Any) -> bool:
    return torch.is_tensor(value) or isinstance(value, Mapping | list | tuple)


def _check_archive(stream: BufferedReader) -> None:
    for member in read_directory(stream, MAX_MEMBERS):
        if member.method != STORED:
            raise ValueError("its entries are compressed, which PyTorch does not do")
        if member.name.endswith("data.pkl") and member.size > MAX_PROGRAM:
            raise ValueError(f"its pickle has {member.size:,} bytes; at most {MAX_PROGRAM:,}")


class _CountedReads:
    """A file that can be read in at most MAX_READS pieces."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._left = MAX_READS
        self._size = os.fstat(file.fileno()).st_size

    def _count(self, size: int = 0) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"its pickle has more than {MAX_READS:,} instructions")
        if size > self._size:
            raise ValueError(f"a text of {size:,} bytes is longer than the file")

    def read(self, size: int = -1) -> bytes:
        self._count(size)
        return self._file.read(size)

    def readline(self, size: int = -1) -> bytes:
        self._count()
        return self._file.readline(size)

    def readinto(self, target: memoryview) -> int:
        self._count()
        return self._file.readinto(target)

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()
