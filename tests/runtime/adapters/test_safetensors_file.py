"""Reading .safetensors files without the library that wrote them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdexport.engines.errors import CheckpointError
from sdexport.runtime.adapters.safetensors_file import SafetensorsFile

FLOATS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_every_type_is_read_as_pytorch_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([[0.0, 1.0, -1.5], [0.0078125, 300.0, 1e-6]]).to(dtype)
    if dtype.itemsize == 1 and dtype.is_floating_point:  # every code
        values = torch.arange(256, dtype=torch.uint8).view(dtype)
    path = tmp_path / "a.safetensors"
    save_file({"a": values, "b": torch.zeros(2, 0)}, path, metadata={"format": "pt"})
    file = SafetensorsFile.read(path)
    expected = values.double() if dtype == torch.float64 else values
    if dtype.is_floating_point and dtype != torch.float64:
        expected = values.float()
    found = file.tensors["a"].values()
    assert np.array_equal(found, expected.numpy(), equal_nan=dtype.is_floating_point)
    assert file.tensors["a"].is_float == dtype.is_floating_point
    assert file.tensors["b"].values().shape == (2, 0)
    assert file.metadata == {"format": "pt"}
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def content(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "empty": b"",
    "short": b"\x10",
    "no header": b"\x80\x02}q\x00",
    "truncated header": content({"a": ENTRY})[:-4],
    "truncated data": content({"a": ENTRY}, b"\0" * 7),
    "another size": content({"a": ENTRY | {"shape": [3]}}, b"\0" * 8),
    "negative shape": content({"a": ENTRY | {"shape": [-1, -2]}}, b"\0" * 8),
    "huge shape": content({"a": ENTRY | {"shape": [2**62, 4]}}, b"\0" * 8),
    "reversed offsets": content({"a": ENTRY | {"data_offsets": [8, 0]}}, b"\0" * 8),
    "unknown type": content({"a": ENTRY | {"dtype": "I4"}}, b"\0" * 8),
    "no type": content({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
    "a list": content([1]),
    "texts that are none": content({"__metadata__": [1], "a": ENTRY}, b"\0" * 8),
    "a name twice": (18).to_bytes(8, "little") + b'{"a": {}, "a": {}}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ä b.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(CheckpointError, match="ä b") as raised:
        SafetensorsFile.read(path)
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SafetensorsFile.read(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError):
        SafetensorsFile.read(tmp_path)
