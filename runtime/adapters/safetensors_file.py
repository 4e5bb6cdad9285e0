"""The tensors of a .safetensors file as NumPy arrays, without the library that wrote it.

Source: the format's description in the safetensors repository, README, "Format". bfloat16 is the
upper half of a float32; float8: Micikevicius et al. 2022, arXiv 2209.05433, section 3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.errors import CheckpointError
from sdexport.engines.guarded_files import open_guarded, read_limited
from sdexport.engines.json_text import parse_json
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.adapters.safetensors_header import check_header

LIMIT = 4 * 2**30
"""Bytes. A LoRA of SDXL of rank 256 has 1.7 GB in float16."""
_PLAIN = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "<?",
}
_SMALL = {"BF16": "<u2", "F8_E5M2": "<u1", "F8_E4M3": "<u1"}
"""Types that NumPy does not have, and that of the same size in which they are read."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is stored; `values` converts it."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview = field(repr=False)

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return "F" in self.dtype

    def values(self) -> np.ndarray:
        """float32, or float64 if they are stored so; integers as they are."""
        raw = np.frombuffer(self.data, _PLAIN.get(self.dtype) or _SMALL[self.dtype])
        if self.dtype == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        elif self.dtype == "F8_E5M2":
            raw = (raw.astype(np.uint16) << 8).view(np.float16)
        elif self.dtype == "F8_E4M3":
            raw = _E4M3[raw]
        if self.dtype == "F64" or not self.is_float:
            return raw.reshape(self.shape)
        return raw.astype(np.float32, copy=False).reshape(self.shape)


@dataclass(frozen=True)
class SafetensorsFile:
    """The content of a file, which is in memory as a whole: its tensors by name, and its texts."""

    path: Path
    sha256: str
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> SafetensorsFile:
        """Read a file of unknown origin.

        Raises: FileNotFoundError: no such file. CheckpointError: of another kind, truncated,
          damaged, or beyond a limit.
        """
        with open_guarded(path, error=CheckpointError, limit=LIMIT) as stream:
            content = read_limited(stream, path, error=CheckpointError, limit=LIMIT)
        check_header(path, BytesIO(content))
        with parsing(f"{path} is damaged"):
            length = int.from_bytes(content[:8], "little")
            header = parse_json(content[8 : 8 + length].decode(), strict=True)
            metadata = header.pop("__metadata__", {})
            texts = {str(key): str(value) for key, value in metadata.items()}
            data = memoryview(content)[8 + length :]
            tensors = {name: _tensor(name, entry, data) for name, entry in header.items()}
        return cls(path, hashlib.sha256(content).hexdigest(), tensors, texts)


def _tensor(name: str, entry: Mapping[str, Any], data: memoryview) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(map(int, entry["shape"]))
    begin, end = map(int, entry["data_offsets"])
    code = _PLAIN.get(dtype) or _SMALL.get(dtype)
    if code is None:
        raise ValueError(f"{name:.80} has the unknown type {dtype!r:.40}")
    size = math.prod(shape) * np.dtype(code).itemsize
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(data) or end - begin != size:
        raise ValueError(f"{name:.80} has {end - begin} bytes at {begin}, expected {size}")
    return StoredTensor(dtype, shape, data[begin:end])


def _float8_e4m3() -> np.ndarray:
    """The value of each byte: 1 bit for the sign, 4 for the exponent, 3 for the fraction."""
    codes = np.arange(128)
    exponent, fraction = codes >> 3, (codes & 7) / 8
    values = np.where(exponent == 0, np.ldexp(fraction, -6), np.ldexp(1 + fraction, exponent - 7))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _float8_e4m3()
