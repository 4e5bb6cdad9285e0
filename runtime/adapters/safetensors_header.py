"""The header of a .safetensors file, checked before the library reads it.

Source: the format's description in the safetensors repository, README, "Format".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from sdexport.engines.errors import CheckpointError
from sdexport.engines.json_text import parse_json
from sdexport.runtime.adapters.damaged_files import parsing

MAX_HEADER = 16 * 2**20
"""Bytes. The checkpoint with most tensors has 0.4 MB; metadata of a training may have a few MB."""
MAX_TENSORS = 50_000
_MAX_DIMENSIONS = 32
_SETTINGS = "__metadata__"


def begins_as_safetensors(head: bytes) -> bool:
    """Whether a file may begin so: the length of a header, and the header's opening brace."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def check_header(path: Path, stream: BinaryIO) -> None:
    """Tell an incomplete download from a damaged file, and from one of another kind.

    Raises: CheckpointError: it is one of these, or beyond a limit.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(9)
    if not begins_as_safetensors(head):
        raise CheckpointError(
            f"{path} is not a .safetensors file: it does not begin with its header; "
            "download it again, or convert it to .safetensors"
        )
    length = int.from_bytes(head[:8], "little")
    if length > size - 8:
        raise CheckpointError(
            f"{path} is truncated: its header alone has {length + 8:,} bytes, "
            f"the file {size:,}; download it again"
        )
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path}: its header has {length:,} bytes, and at most {MAX_HEADER:,} are read; "
            "save it with less metadata"
        )
    stream.seek(8)
    with parsing(f"{path} is damaged: its header cannot be read"):
        header = parse_json(stream.read(length).decode(), strict=True)
        expected = 8 + length + _end_of_data(header)
    if size < expected:
        raise CheckpointError(
            f"{path} is truncated: expected {expected:,} bytes, got {size:,}; download it again"
        )


def _end_of_data(header: dict[str, Any]) -> int:
    """Bytes from the header's end to that of the last tensor.

    Raises: ValueError: beyond a limit. Anything: an entry that is none.
    """
    entries = [entry for name, entry in header.items() if name != _SETTINGS]
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"it has {len(entries):,} tensors, and at most {MAX_TENSORS:,} are read")
    if any(len(entry.get("shape", ())) > _MAX_DIMENSIONS for entry in entries):
        raise ValueError(f"a tensor has more than {_MAX_DIMENSIONS} dimensions")
    return max((int(entry["data_offsets"][1]) for entry in entries), default=0)
