"""Files of weights that ask for memory or time: one line each, within 200 MB and a second."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sdexport import CheckpointError
from sdexport.checkpoints import pickle_file
from sdexport.checkpoints.pickle_file import tensors_in
from sdexport.checkpoints.weight_file import WeightFile
from tests.helpers.limited_process import assert_malformed, outcomes


def read(path: Path) -> int:
    """Opened as export opens it; for the process of limited_process."""
    return len(WeightFile.open(path, allow_pickle=True).weights)


def header(content: Any, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def pickled(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def compressed(program: bytes) -> bytes:
    """A PyTorch archive whose pickle is another one, compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(pickled({"a": torch.zeros(1)}))) as whole,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as other,
    ):
        for name in whole.namelist():
            other.writestr(name, program if name.endswith("data.pkl") else whole.read(name))
    return buffer.getvalue()


def stored(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(pickled({"a": torch.zeros(1)}))) as whole,
        zipfile.ZipFile(buffer, "w") as other,
    ):
        for name in whole.namelist():
            other.writestr(name, program if name.endswith("data.pkl") else whole.read(name))
    return buffer.getvalue()


ONE = entry([1], 0, 4)
SAFETENSORS = {
    "a header of 100 MB": (
        struct.pack("<Q", 99_000_000) + b"{" + b" " * 98_999_999,
        "header has 99,000,000 bytes, and at most 16,777,216",
    ),
    "5 million lists": (
        header(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"),
        "more than 400,000 lists and objects",
    ),
    "nested lists": (header(b'{"a":' + b"[" * 300_000), "is damaged: its header cannot be read"),
    "80,000 tensors": (
        header({str(number): entry([0], 0, 0) for number in range(80_000)}),
        "80,000 tensors, and at most 50,000",
    ),
    "two of one name": (
        header(b'{"a":%s,"a":%s}' % ((json.dumps(ONE).encode(),) * 2), bytes(4)),
        "the key 'a' is there twice",
    ),
    "a shape beyond its bytes": (header({"a": entry([2**40], 0, 4)}, bytes(4)), "is damaged"),
    "a shape that overflows": (header({"a": entry([2**62] * 4, 0, 4)}, bytes(4)), "is damaged"),
    "100,000 dimensions": (header({"a": entry([1] * 100_000, 0, 4)}, bytes(4)), "32 dimensions"),
    "places that overlap": (
        header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "is damaged",
    ),
    "places before the data": (header({"a": entry([1], -4, 0)}, bytes(4)), "is damaged"),
    "places after the data": (header({"a": entry([1], 10**30, 10**30 + 4)}), "is truncated"),
    "an unknown type": (header({"a": entry([1], 0, 4, "F33")}, bytes(4)), "is damaged"),
    "names that are no text": (header(b'{"\xff": 1}'), "is damaged: its header"),
    "settings that are no texts": (header({"__metadata__": {"a": 1}, "a": ONE}, bytes(4)), "dam"),
}
PICKLES = {
    "compressed": (compressed(b"\x80\x02}" + b"0" * 10**7), "its entries are compressed"),
    "a program of 5 MB": (stored(b"]" * 5 * 2**20), "its pickle has 5,242,880 bytes; at most"),
    "more values than it holds": (
        pickled({"a": torch.zeros(1).expand(2**40)}),
        "'a' claims more values than the file holds",
    ),
    "the same, nested": (
        pickled({"x": [{"y": torch.zeros(1).expand(2**40)}]}),
        "claims more values than the file holds",
    ),
    "the same, in the older format": (
        pickled({"a": torch.zeros(1).expand(2**40)}, _use_new_zipfile_serialization=False),
        "claims more values than the file holds",
    ),
    "a text of 2 GB": (b"\x80\x02X" + struct.pack("<I", 2**31 - 1), "is longer than the file"),
}


def test_hostile_weights(tmp_path: Path) -> None:
    cases = {**SAFETENSORS, **PICKLES}
    paths = []
    for number, (name, (content, _)) in enumerate(cases.items()):
        suffix = "pt" if name in PICKLES else "safetensors"
        paths.append(tmp_path / f"{number}.{suffix}")
        paths[-1].write_bytes(content)
    function = "tests.sdexport.checkpoints.test_hostile_weights:read"
    for found, path, (_, message) in zip(
        outcomes([(function, path) for path in paths]), paths, cases.values(), strict=True
    ):
        assert_malformed(found, "CheckpointError")
        assert found.text.startswith(str(path)) and message in found.text, found


def test_pickles_have_a_limited_number_of_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.pt"
    path.write_bytes(pickled({"a": torch.zeros(1)}, _use_new_zipfile_serialization=False))
    assert list(WeightFile.open(path, allow_pickle=True).tensors) == ["a"]
    monkeypatch.setattr(pickle_file, "MAX_READS", 20)
    with pytest.raises(CheckpointError, match="more than 20 instructions"):
        WeightFile.open(path, allow_pickle=True)


def test_containers_that_hold_each_other_end(tmp_path: Path) -> None:
    """A list that is in itself, and one that holds 3**60 lists."""
    ring: list[Any] = []
    ring.append(ring)
    many: Any = {}
    for _ in range(60):
        many = {"a": many, "b": many, "c": many}
    path = tmp_path / "rings.pt"
    path.write_bytes(pickled({"ring": ring, "many": many}))
    assert WeightFile.open(path, allow_pickle=True).others == ()
    tensor = torch.zeros(1)
    assert list(tensors_in([{"x": (tensor, ring)}, many])) == [("0", tensor)]


def test_links_of_users_are_followed_and_pipes_are_not(tmp_path: Path) -> None:
    import os

    (tmp_path / "a.safetensors").write_bytes(header({"a": ONE}, bytes(4)))
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
    assert list(WeightFile.open(tmp_path / "link.safetensors").tensors) == ["a"]
    with pytest.raises(CheckpointError, match="is a folder"):
        WeightFile.open(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(CheckpointError, match="not a regular file"):
            WeightFile.open(tmp_path / "pipe.safetensors")
