"""Arrays in .npy and .npz files of unknown origin, read within limits.

numpy.load believes what such a file says of itself: a file of 3 MB may unpack to many GB, and a
header of some bytes may ask for as much. Here every size is known and compared with a limit before
anything of that size is allocated.

Source: NumPy's documentation of the NPY format, numpy.lib.format.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from sdexport.engines.errors import SDExportError
from sdexport.engines.guarded_files import open_guarded, parsing
from sdexport.engines.messages import plain
from sdexport.engines.zip_members import DEFLATED, MemberReader, read_directory

MAX_ARRAYS = 4096
"""In one .npz file."""
MAX_UNPACKED = 64 * 2**20
"""Bytes of all compressed arrays of one .npz file; arrays that are not compressed take no more
memory than the file has bytes."""
_MAX_HEADER = 10_000
"""Bytes, as in numpy.load."""
_MAX_TEXT = 2**22
"""Bytes of one text, at 4 a character."""
_MAX_DIMENSIONS = 32
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"""\{\s*'descr':\s*'(?P<dtype>[<>|=]?[biufcSU][1-9]\d{0,8})',"""
    r"""\s*'fortran_order':\s*(?P<fortran>True|False),"""
    r"""\s*'shape':\s*\((?P<shape>[0-9, ]*)\),?\s*\}\s*"""
)
_Read = Callable[[int], bytes]


class _Layout(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    size: int
    """Bytes."""


def read_arrays(
    path: Path,
    *,
    error: type[SDExportError],
    limit: int,
    folder: Path | None = None,
    names: Container[str] | None = None,
    called: str = "",
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name; Python objects and records are rejected.

    Peak memory is the size of the file, or MAX_UNPACKED more if arrays in it are compressed.

    Args:
      limit: bytes of the file.
      folder: see open_guarded.
      names: read only these.
      called: what messages call the file; default its path.
    Raises: error: not such a file, damaged, truncated, or beyond a limit. OSError: it cannot be
      read.
    """
    with (
        open_guarded(path, error=error, folder=folder, limit=limit) as file,
        parsing(error, called or path),
    ):
        members = read_directory(file, MAX_ARRAYS)
        unpacked = sum(member.size for member in members if member.method == DEFLATED)
        if unpacked > MAX_UNPACKED:
            raise ValueError(
                f"its compressed arrays have {unpacked:,} bytes; at most {MAX_UNPACKED:,} are "
                "read. Save it with numpy.savez, without compression"
            )
        arrays = {}
        for member in members:
            name = member.name.removesuffix(".npy")
            if names is None or name in names:
                reader = MemberReader(file, member)
                arrays[name] = _array(reader.read, reader.read_into, member.size, plain(name))
        return arrays


def read_array(
    path: Path, *, error: type[SDExportError], limit: int, folder: Path | None = None
) -> np.ndarray:
    """The array of an .npy file; see `read_arrays`."""
    with (
        open_guarded(path, error=error, folder=folder, limit=limit) as file,
        parsing(error, path),
    ):
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        return _array(file.read, lambda target: _fill(file, target), length, "the array")


def _fill(file: BinaryIO, target: memoryview) -> None:
    done = 0
    while done < len(target):
        piece = file.read(min(len(target) - done, 2**20))
        if not piece:
            raise ValueError("it is truncated")
        target[done : done + len(piece)] = piece
        done += len(piece)


def _array(read: _Read, fill: Callable[[memoryview], None], size: int, called: str) -> np.ndarray:
    """Read one array of a file or member of `size` bytes."""
    begin, header = _header(read, size, called)
    layout = _layout(header, called)
    if layout.size != size - begin:
        raise ValueError(
            f"{called} has {size - begin:,} bytes; {layout.dtype} {layout.shape} needs "
            f"{layout.size:,}"
        )
    values = np.empty(layout.shape[::-1] if layout.fortran else layout.shape, layout.dtype)
    if layout.size:
        fill(values.reshape(-1).view(np.uint8).data)
    return values.T if layout.fortran else values


def _header(read: _Read, size: int, called: str) -> tuple[int, str]:
    """Bytes up to the array's values, and the header that describes them."""
    if size < 12 or (start := read(8))[:6] != _MAGIC:
        raise ValueError(f"{called} is not an array in NumPy's format")
    digits = 2 if start[6] == 1 else 4
    length = int.from_bytes(read(digits), "little")
    begin = 8 + digits + length
    if start[6] not in (1, 2, 3) or length > _MAX_HEADER or begin > size:
        raise ValueError(f"{called}: its header is damaged")
    return begin, read(length).decode("utf-8" if start[6] == 3 else "latin-1")


def _layout(header: str, called: str) -> _Layout:
    found = _HEADER.fullmatch(header)
    if not found:
        raise ValueError(f"{called} is not an array of numbers or texts, or its header is damaged")
    dtype = np.dtype(found["dtype"])
    sizes = [each.strip() for each in found["shape"].split(",")]
    if sizes[-1] == "":
        sizes.pop()
    if len(sizes) > _MAX_DIMENSIONS or any(not each or len(each) > 18 for each in sizes):
        raise ValueError(f"{called}: its shape is damaged")
    shape = tuple(map(int, sizes))
    if dtype.itemsize > _MAX_TEXT:
        raise ValueError(f"{called}: a text of {dtype.itemsize:,} bytes; at most {_MAX_TEXT:,}")
    return _Layout(dtype, shape, found["fortran"] == "True", math.prod(shape) * dtype.itemsize)
