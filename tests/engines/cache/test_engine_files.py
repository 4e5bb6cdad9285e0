"""Files of an engine: hashed once before they are opened, and compared with the sidecar."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import pytest

from sdexport.engines import EngineError
from sdexport.engines.cache import engine_files, hash_check
from sdexport.engines.cache.engine_files import checked_files
from sdexport.engines.cache.sidecar import Sidecar, StoredFile
from sdexport.engines.errors import PackageError

OLD_NS = 10**18
"""A time long ago: such a file's hash is remembered."""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    for name in ("unet.onnx", "unet.onnx_data"):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(OLD_NS, OLD_NS))
    return tmp_path / "unet.onnx"


@pytest.fixture
def sidecar(plan: Path) -> Sidecar:
    files = {path.name: StoredFile.of(path) for path in plan.parent.iterdir()}
    return Sidecar("unet", "onnxruntime", "1", "", "", {}, (), {}, (), (), files=files)


def test_files_are_hashed_once_while_they_stay_the_same(
    plan: Path, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = hash_check._digest

    def count(file: BufferedReader) -> str:
        hashed.append(file.name)
        return digest(file)

    monkeypatch.setattr(hash_check, "_digest", count)
    sizes: list[int] = []
    for _ in range(3):
        checked_files(plan, sidecar, on_bytes=sizes.append)
    assert len(hashed) == 2 and sum(sizes) == 3 * sidecar.size
    os.utime(plan, ns=(OLD_NS, OLD_NS + 1))
    checked_files(plan, sidecar)
    assert len(hashed) == 3
    plan.write_bytes(plan.read_bytes())  # as young as a change that its time may not show
    checked_files(plan, sidecar)
    checked_files(plan, sidecar)
    assert len(hashed) == 5


def test_remembered_hashes_are_bounded(
    plan: Path, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_files, "MOST_HASHES", 1)
    monkeypatch.setattr(engine_files, "_known", OrderedDict())
    checked_files(plan, sidecar)
    assert len(engine_files._known) == 1


@pytest.mark.parametrize("name", ["unet.onnx", "unet.onnx_data"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("flip", "was damaged or altered: its SHA-256 is not the one in unet.json"),
        ("missing", "is missing"),
        ("pipe", "is not a regular file"),
        ("link", "is a link"),
        ("folder", "is a folder"),
    ],
)
def test_altered_files_are_named(
    plan: Path, sidecar: Sidecar, name: str, damage: str, words: str
) -> None:
    path = plan.with_name(name)
    content = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(content[:-1] + b"!")
    elif damage == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes with a name")
        os.mkfifo(path)
    elif damage == "link":
        path.with_name("copy").write_bytes(content)
        path.symlink_to(path.with_name("copy"))
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(EngineError) as caught:
        checked_files(plan, sidecar)
    assert f"{path} {words}" in str(caught.value)


def test_files_must_stay_the_same_while_a_library_opens_them(plan: Path, sidecar: Sidecar) -> None:
    files = checked_files(plan, sidecar)
    with files.unchanged():
        pass
    with pytest.raises(PackageError, match="changed on disk"), files.unchanged():
        os.replace(plan.with_name("unet.onnx_data"), plan)


def test_hash_of_another_file_of_the_engine_does_not_count(plan: Path, sidecar: Sidecar) -> None:
    swapped = dict(zip(sidecar.files, reversed(sidecar.files.values()), strict=True))
    with pytest.raises(EngineError, match="its SHA-256 is not the one"):
        checked_files(plan, replace(sidecar, files=swapped))
