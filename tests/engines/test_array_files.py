"""Arrays in files: read as NumPy reads them, and hostile files rejected before they take memory."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import PackageError
from sdexport.engines import array_files
from sdexport.engines.array_files import read_array, read_arrays
from tests.helpers.limited_process import assert_malformed, outcomes

LIMIT = 2**30
ARRAYS = {
    "rows": np.arange(12.0).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
    "text": np.array("h\u00e9"),
    "empty": np.array(""),
    "no_rows": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "other_order": np.arange(3, dtype=">i4"),
    "number": np.array(3),
    "complex": np.array([1j, 2]),
}


def read(path: Path) -> dict[str, np.ndarray]:
    return read_arrays(path, error=PackageError, limit=LIMIT)


def read_one(path: Path) -> np.ndarray:
    return read_array(path, error=PackageError, limit=LIMIT)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_read_arrays_reads_what_numpy_wrote(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "arrays.npz"
    save(path, **ARRAYS)
    found = read(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    some = read_arrays(path, error=PackageError, limit=LIMIT, names={"rows", "missing"})
    assert list(some) == ["rows"]


def test_read_arrays_reads_archives_with_fields_of_64_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are written above 4 GB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    np.savez(tmp_path / "arrays.npz", **ARRAYS)
    assert b"PK\x06\x06" in (tmp_path / "arrays.npz").read_bytes()
    assert list(read(tmp_path / "arrays.npz")) == list(ARRAYS)


def test_read_array_reads_what_numpy_wrote(tmp_path: Path) -> None:
    for name, array in ARRAYS.items():
        np.save(tmp_path / name, array)
        found = read_one(tmp_path / f"{name}.npy")
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


def npy(header: str, values: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    text = header.encode("latin-1")
    count = len(text) if length is None else length
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + count.to_bytes(2 if version == 1 else 4, "little")
        + text
        + values
    )


def described(dtype: str, shape: str, order: str = "False") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}\n"


ONE = npy(described("<f4", "(1,)"), b"\0\0\0\0")
NOT_ARRAYS = {
    "nothing": (b"", "not an array in NumPy's format"),
    "text": (b"no array at all, but a text", "not an array in NumPy's format"),
    "cut in its header": (ONE[:40], "header is damaged"),
    "cut in its values": (ONE[:-1], "has 3 bytes"),
    "more than its shape": (ONE + b"\0", "has 5 bytes"),
    "huge shape": (npy(described("<f4", "(1000000, 1000000)"), b"\0" * 4), "needs 4,000,000"),
    "shape that overflows": (npy(described("<f8", "(4294967296, 4294967296, 0)")), "damaged"),
    "negative shape": (npy(described("<f4", "(-1,)"), b"\0" * 4), "header is damaged"),
    "number of 5000 digits": (npy(described("<f4", f"({'9' * 5000},)")), "shape is damaged"),
    "dimensions": (npy(described("<f4", "(" + "1, " * 65 + ")"), b"\0" * 4), "shape is damaged"),
    "objects": (npy(described("|O", "(1,)"), b"\x80\x04N."), "not an array of numbers"),
    "records": (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}"), "numbers"),
    "huge text": (npy(described("<U500000000", "(0,)")), "2,000,000,000 bytes"),
    "items of no size": (npy(described("<U0", "(1000000000000,)")), "header is damaged"),
    "unknown type": (npy(described("<f3", "(1,)"), b"\0" * 3), "is damaged"),
    "header of 4 GB": (npy("{", version=2, length=2**32 - 1), "header is damaged"),
    "header of 60 kB": (npy("(" * 60_000), "header is damaged"),
    "program": (npy("__import__('os').abort()" + " " * 20), "header is damaged"),
    "version": (b"\x93NUMPY\x09" + ONE[7:], "header is damaged"),
}


@pytest.mark.parametrize("kind", NOT_ARRAYS)
def test_read_array_rejects(tmp_path: Path, kind: str) -> None:
    content, message = NOT_ARRAYS[kind]
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=message) as caught:
        read_one(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    path = tmp_path / "bad.npz"
    path.write_bytes(zipped({"x.npy": content}))
    with pytest.raises(PackageError, match=message.replace("the array", "x")):
        read(path)


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def changed(archive: bytes, field: int, value: int, size: int = 4) -> bytes:
    """An archive of one member with another value at a place of its directory entry."""
    place = archive.index(b"PK\x01\x02") + field
    return archive[:place] + value.to_bytes(size, "little") + archive[place + size :]


def with_end(archive: bytes, field: int, value: int, size: int = 4) -> bytes:
    place = archive.rindex(b"PK\x05\x06") + field
    return archive[:place] + value.to_bytes(size, "little") + archive[place + size :]


def renamed(archive: bytes) -> bytes:
    return archive.replace(b"y.npy", b"x.npy")


GOOD = zipped({"x.npy": ONE})
PACKED = zipped({"x.npy": ONE}, zipfile.ZIP_DEFLATED)
ARCHIVES = {
    "nothing": (b"", "not a ZIP archive"),
    "a pickle": (b"\x80\x04nonsense", "not a ZIP archive"),
    "its first half": (GOOD[: len(GOOD) // 2], "not a ZIP archive"),
    "no end": (GOOD[:-30], "not a ZIP archive"),
    "other values": (GOOD.replace(b"\0\0\0\0PK\x01", b"\0\1\0\0PK\x01"), "checksum"),
    "encrypted": (changed(GOOD, 8, 1, 2), "x.npy is encrypted"),
    "bzip2": (zipped({"x.npy": ONE}, zipfile.ZIP_BZIP2), "compression 12 is not supported"),
    "lzma": (zipped({"x.npy": ONE}, zipfile.ZIP_LZMA), "compression 14 is not supported"),
    "two of one name": (renamed(zipped({"x.npy": ONE, "y.npy": ONE})), "two members of one name"),
    "size that lies": (changed(changed(GOOD, 24, 2**31), 20, 2**31), "overlap, or it is truncated"),
    "sizes that differ": (changed(GOOD, 24, 2**31), "contradict"),
    "unpacks to more": (changed(PACKED, 24, 20), "header is damaged|truncated|has"),
    "unpacks to less": (changed(PACKED, 24, 2**20), "has 1,048"),
    "unpacks to 4 GB": (changed(PACKED, 24, 2**32 - 1), "compressed arrays have 4,294"),
    "member elsewhere": (changed(GOOD, 42, 7), "no member where the directory says"),
    "member after the end": (changed(GOOD, 42, 2**31), "no member where the directory says"),
    "directory elsewhere": (with_end(GOOD, 16, 3), "directory of the archive is damaged"),
    "directory of 4 GB": (with_end(GOOD, 12, 2**31), "directory of the archive is damaged"),
    "60,000 members": (with_end(with_end(GOOD, 8, 60_000, 2), 10, 60_000, 2), "60000 members"),
    "more than 4 GB": (with_end(GOOD, 16, 2**32 - 1), "directory of the archive is damaged"),
    "several parts": (with_end(GOOD, 4, 1, 2), "several parts"),
    "name that is no text": (GOOD.replace(b"x.npy", b"\xff.npy"), "is damaged"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_read_arrays_rejects(tmp_path: Path, kind: str) -> None:
    content, message = ARCHIVES[kind]
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert str(caught.value).isprintable()


def test_read_arrays_of_damaged_bytes_is_the_array_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    for place in range(len(PACKED)):
        path.write_bytes(PACKED[:place] + bytes([PACKED[place] ^ 1]) + PACKED[place + 1 :])
        try:
            found = read(path)
        except PackageError:
            continue
        assert [array.tolist() for array in found.values()] == [[0.0]]


def bomb(path: Path, gigabytes: float) -> None:
    """A file of some MB whose single array of zeros unpacks to so much."""
    count = int(gigabytes * 2**28)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = npy(described("<f4", f"({count},)"))
    body, checksum = packer.compress(head), zlib.crc32(head)
    zeros = bytes(2**20)
    for _ in range(count * 4 // 2**20):
        body += packer.compress(zeros)
        checksum = zlib.crc32(zeros, checksum)
    body += packer.flush()
    sizes = struct.pack("<3L", checksum, len(body), len(head) + count * 4)
    local = struct.pack("<4s5H", b"PK\x03\x04", 20, 0, 8, 0, 0) + sizes + struct.pack("<2H", 5, 0)
    entry = struct.pack("<4s6H", b"PK\x01\x02", 20, 20, 0, 8, 0, 0) + sizes
    entry += struct.pack("<5H2L", 5, 0, 0, 0, 0, 0, 0) + b"x.npy"
    start = len(local) + 5 + len(body)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), start, 0)
    path.write_bytes(local + b"x.npy" + body + entry + end)


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    """The bound is the size of the file, and array_files.MAX_UNPACKED for compressed arrays."""
    bomb(tmp_path / "bomb.npz", 0.5)
    assert (tmp_path / "bomb.npz").stat().st_size < 2**20
    bomb(tmp_path / "largest.npz", 60 / 1024)
    names = [("read", "bomb.npz"), ("read", "largest.npz")]
    for number, (content, _) in enumerate(ARCHIVES.values()):
        (tmp_path / f"{number}.npz").write_bytes(content)
        names.append(("read", f"{number}.npz"))
    for number, (content, _) in enumerate(NOT_ARRAYS.values()):
        (tmp_path / f"{number}.npy").write_bytes(content)
        names.append(("read_one", f"{number}.npy"))
    found = outcomes(
        [(f"tests.engines.test_array_files:{name}", tmp_path / path) for name, path in names]
    )
    assert found[1].kind == "" and 55 < found[1].grown_mb < 80
    for each in (found[0], *found[2:]):
        assert_malformed(each, "PackageError", mb=20)


def test_read_arrays_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, **ARRAYS)
    with pytest.raises(PackageError, match=r"at most 100 are read"):
        read_arrays(path, error=PackageError, limit=100)
    monkeypatch.setattr(array_files, "MAX_ARRAYS", 3)
    with pytest.raises(PackageError, match="9 members; at most 3"):
        read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_and_folders_are_no_arrays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    functions: list[Any] = [read, read_one]
    for function in functions:
        with pytest.raises(PackageError, match="not a regular file"):
            function(tmp_path / "pipe")
        with pytest.raises(PackageError, match="is a folder"):
            function(tmp_path)
        with pytest.raises(FileNotFoundError):
            function(tmp_path / "none")
