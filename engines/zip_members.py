"""The members of a ZIP archive of unknown origin, read within limits.

Python's zipfile reads a directory of any length, and trusts the sizes in it. Here the number of
members is bounded before the directory is read, every member lies inside the file, and no more is
read of it than the directory says.

Source: PKWARE, .ZIP File Format Specification 6.3, sections 4.3.7, 4.3.12, 4.3.16 and 4.4.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from sdexport.engines.messages import plain

_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_COMMENT = 2**16 - 1
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_16_BITS, _32_BITS = 2**16 - 1, 2**32 - 1
"""Values that stand for one in a field of 64 bits."""
_ENCRYPTED = 0x2041
"""Flags of encrypted members: bits 0, 6 and 13."""
STORED, DEFLATED = 0, 8
_LONGEST_ENTRY = 1024
"""Bytes of a member's entry in the directory, with its name."""
_PIECE = 2**18


@dataclass(frozen=True)
class ZipMember:
    """A member as the archive's directory describes it.

    Attributes:
      compressed: bytes in the archive. size: bytes of its content. start: of its local header.
    """

    name: str
    method: int
    checksum: int
    compressed: int
    size: int
    start: int


def read_directory(file: BinaryIO, limit: int) -> list[ZipMember]:
    """The members of an archive.

    Args:
      limit: members.
    Raises: ValueError: not a ZIP archive, more members, or one that is encrypted, compressed by
      another method than deflate, listed twice or not inside the file.
    """
    length = file.seek(0, os.SEEK_END)
    count, size, start = _end_of_directory(file, length)
    if count > limit:
        raise ValueError(f"it has {count} members; at most {limit} are read")
    if start + size > length or size > count * _LONGEST_ENTRY:
        raise ValueError("the directory of the archive is damaged")
    file.seek(start)
    members = list(_entries(file.read(size), count))
    if len({member.name for member in members}) != count:
        raise ValueError("it holds two members of one name")
    if sum(member.compressed + _LOCAL.size for member in members) > length:
        raise ValueError("its members overlap, or it is truncated")
    return members


def _end_of_directory(file: BinaryIO, length: int) -> tuple[int, int, int]:
    """Number of members, and size and start of the directory."""
    tail = min(length, _END.size + _COMMENT)
    file.seek(length - tail)
    end = file.read(tail)
    place = end.rfind(b"PK\x05\x06")
    if place < 0 or len(end) - place < _END.size:
        raise ValueError("it is not a ZIP archive, or truncated")
    _, disk, first_disk, here, count, size, start, _ = _END.unpack_from(end, place)
    if disk or first_disk or here != count:
        raise ValueError("it is an archive of several parts")
    if count == _16_BITS or _32_BITS in (size, start):
        return _end_of_large(file, length - tail + place)
    return count, size, start


def _end_of_large(file: BinaryIO, place: int) -> tuple[int, int, int]:
    """`_end_of_directory` of an archive of more than 4 GB, whose usual end is at `place`."""
    file.seek(max(0, place - _LOCATOR.size))
    locator = file.read(_LOCATOR.size)
    if len(locator) == _LOCATOR.size and locator[:4] == b"PK\x06\x07":
        file.seek(min(_LOCATOR.unpack(locator)[2], place))
        end = file.read(_END_64.size)
        if len(end) == _END_64.size and end[:4] == b"PK\x06\x06":
            count, size, start = _END_64.unpack(end)[7:10]
            return count, size, start
    raise ValueError("the directory of the archive is damaged")


def _entries(directory: bytes, count: int) -> Iterator[ZipMember]:
    place = 0
    for _ in range(count):
        if place + _ENTRY.size > len(directory):
            raise ValueError("the directory of the archive is truncated")
        values = _ENTRY.unpack_from(directory, place)
        mark, flags, method = values[0], values[3], values[4]
        checksum, compressed, size, name_length, extra, comment = values[7:13]
        after = place + _ENTRY.size + name_length
        name = directory[place + _ENTRY.size : after].decode("utf-8")
        further = directory[after : after + extra]
        size, compressed, begin = _in_64_bits(further, size, compressed, values[16])
        member = ZipMember(name, method, checksum, compressed, size, begin)
        if mark != b"PK\x01\x02" or len(name.encode()) != name_length:
            raise ValueError("the directory of the archive is damaged")
        if flags & _ENCRYPTED:
            raise ValueError(f"{plain(name)} is encrypted")
        if method not in (STORED, DEFLATED):
            raise ValueError(f"{plain(name)}: compression {method} is not supported, only deflate")
        if method == STORED and compressed != size:
            raise ValueError(f"{plain(name)}: its sizes contradict each other")
        yield member
        place = after + extra + comment


def _in_64_bits(extra: bytes, *values: int) -> list[int]:
    """Size, compressed size and start; those that are _32_BITS are in an extra field (4.5.3)."""
    found = list(values)
    if _32_BITS not in found:
        return found
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = iter(struct.unpack(f"<{min(length, 24) // 8}Q", extra[4:][: length // 8 * 8]))
            return [next(wide, value) if value == _32_BITS else value for value in found]
        extra = extra[4 + length :]
    return found


class MemberReader:
    """Reads a member's content piece by piece, never more than its directory entry says.

    Raises: ValueError: the archive contradicts its directory.
    """

    def __init__(self, file: BinaryIO, member: ZipMember) -> None:
        file.seek(member.start)
        self._called = plain(member.name)
        head = file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
            raise ValueError(f"{self._called}: no member where the directory says")
        name_length, extra = _LOCAL.unpack(head)[9:11]
        file.seek(name_length + extra, os.SEEK_CUR)
        self._file, self._member = file, member
        self._left, self._unread = member.compressed, member.size
        self._checksum = 0
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == DEFLATED else None

    def read_into(self, target: memoryview) -> None:
        """Fill `target` (bytes) with the next bytes of the content."""
        if len(target) > self._unread:
            raise ValueError(f"{self._called} is truncated")
        done = 0
        while done < len(target):
            piece = self._piece(len(target) - done)
            target[done : done + len(piece)] = piece
            done += len(piece)
        self._unread -= done
        if not self._unread and self._checksum != self._member.checksum:
            raise ValueError(f"{self._called}: its checksum does not match")

    def read(self, length: int) -> bytes:
        """The next `length` bytes of the content."""
        data = bytearray(length)
        self.read_into(memoryview(data))
        return bytes(data)

    def _piece(self, wanted: int) -> bytes:
        wanted = min(wanted, _PIECE)
        inflate = self._inflate
        if inflate is None:
            piece = self._compressed(wanted)
        else:
            piece = b""
            while not piece:
                data = inflate.unconsumed_tail or self._compressed(_PIECE)
                if inflate.eof or not data:
                    raise ValueError(f"{self._called} is truncated")
                try:
                    piece = inflate.decompress(data, wanted)
                except zlib.error as error:
                    raise ValueError(f"{self._called} is damaged: {error}") from error
        self._checksum = zlib.crc32(piece, self._checksum)
        return piece

    def _compressed(self, wanted: int) -> bytes:
        data = self._file.read(min(wanted, self._left))
        self._left -= len(data)
        if not data and not self._inflate:
            raise ValueError(f"{self._called} is truncated")
        return data
