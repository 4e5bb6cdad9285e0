"""Leaves a CUDA library only the code for one kind of GPU, so that there is less to carry.

A fat binary is a header and entries, each for one compute capability. Those for other GPUs are
left out, and the rest moves up: what a compiler would have written for that GPU alone. The file
keeps its size and everything else its place; what is left over is zeros, which compress to nothing.

Source: the layout as tools such as cuobjdump print it: header 0xBA55ED50, version, its size (16
bits each), size of the entries (64 bits); an entry's kind and version (16 bits each), the size of
its header (32), of its data (64), and at byte 28 its capability.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ")
_CAPABILITY = struct.Struct("<I")
_CAPABILITY_AT = 28
_LEAST_ENTRY = 32
PTX, MACHINE_CODE = 1, 2


@dataclass(frozen=True)
class Entry:
    """One entry: where it is, and for which GPU. capability: 90 for 9.0."""

    start: int
    end: int
    kind: int
    capability: int


def keep_only(data: bytearray, capability: int) -> int:
    """Remove machine code that a GPU cannot run; returns how many bytes became zeros.

    Code for an earlier minor version of the same major one is kept, as is PTX, which the driver
    compiles. A fat binary that has nothing for this GPU is left as it is.

    Args:
      data: of a library; changed in place. capability: 90 for 9.0.
    """
    removed = 0
    place = data.find(MAGIC)
    while place >= 0:
        entries = _entries(data, place)
        if entries:
            removed += _compact(data, place, entries, capability)
        place = data.find(MAGIC, entries[-1].end if entries else place + len(MAGIC))
    return removed


def runs_on(entry: Entry, capability: int) -> bool:
    """Whether a GPU can use an entry."""
    same = entry.capability // 10 == capability // 10 and entry.capability <= capability
    return entry.kind != MACHINE_CODE or same


def _compact(data: bytearray, place: int, entries: list[Entry], capability: int) -> int:
    kept = [entry for entry in entries if runs_on(entry, capability)]
    if not kept or len(kept) == len(entries):
        return 0
    first, end = entries[0].start, entries[-1].end
    content = b"".join(data[entry.start : entry.end] for entry in kept)
    magic, version, size, _ = _HEADER.unpack_from(data, place)
    _HEADER.pack_into(data, place, magic, version, size, len(content))
    data[first:end] = content.ljust(end - first, b"\0")
    return end - first - len(content)


def _entries(data: bytes | bytearray, place: int) -> list[Entry]:
    """The entries of the fat binary there; empty if those bytes only look like one."""
    if len(data) - place < _HEADER.size:
        return []
    _, version, header, size = _HEADER.unpack_from(data, place)
    start, end = place + header, place + header + size
    if version != 1 or header != _HEADER.size or end > len(data):
        return []
    found: list[Entry] = []
    while start < end:
        if end - start < _LEAST_ENTRY:
            return []
        kind, _, own, content = _ENTRY.unpack_from(data, start)
        (capability,) = _CAPABILITY.unpack_from(data, start + _CAPABILITY_AT)
        if own < _LEAST_ENTRY or start + own + content > end:
            return []
        found.append(Entry(start, start + own + content, kind, capability))
        start = found[-1].end
    return found
