"""A package appears at its destination whole, whatever happens to the process that writes it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport import Package, PackageError, folder_exchange, unfinished_exports
from sdexport.demo_model import PACKAGE_DIR
from sdexport.exporter import export
from sdexport.folder_exchange import exchange
from sdexport.package_folder import package_folder
from sdexport.runtime.packages.unfinished import UNFINISHED
from sdexport.unfinished_exports import hidden_folder, sweep
from tests.helpers.changed_package import accept_files, edit_manifest

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from sdexport import folder_exchange, package_folder, unfinished_exports

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

place, source, destination = sys.argv[1:]
if place == "block":
    copy = lambda source, folder: (Path(folder, "unet").mkdir(), die())
else:
    import shutil
    copy = lambda source, folder: shutil.copytree(source, folder, dirs_exist_ok=True)
    if place == "sync":
        package_folder.sync_tree = die
    elif place == "moved":
        package_folder.sync = die
    elif place == "between":
        folder_exchange.exchange = lambda first, second: False
        Path.rename = lambda old, new: (os.rename(old, new), die())
    elif place == "delete":
        unfinished_exports.delete_hidden = die
with package_folder.package_folder(Path(destination), force=True) as folder:
    copy(source, folder)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="kills with SIGKILL")


def run(place: str, source: Path, destination: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, place, str(source), str(destination)]
    return subprocess.run(command, capture_output=True, text=True)


def write(destination: Path, text: str, *, force: bool = False) -> None:
    with package_folder(destination, force=force) as folder:
        (folder / "sdexport.json").write_text(text)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A package at the destination, which is known by a number in its manifest."""
    folder = shutil.copytree(PACKAGE_DIR, tmp_path / "package")
    edit_manifest(folder, lambda m: m["tools"].update(number="old"))
    return folder


def number(folder: Path) -> str | None:
    return Package.load(folder).manifest.tools.get("number")


@linux
@pytest.mark.parametrize("place", ["block", "sync", "moved", "between", "delete"])
def test_kill_leaves_the_old_package_or_the_new_one(old: Path, place: str) -> None:
    assert run(place, PACKAGE_DIR, old).returncode == -signal.SIGKILL
    (hidden,) = old.parent.glob(".package.*")
    for folder in (hidden, hidden / "package", hidden / "replaced"):
        if folder.is_dir():
            with pytest.raises(PackageError, match="is an unfinished export") as error:
                Package.load(folder)
            assert "\n" not in str(error.value)
    if place == "between":  # only where folders cannot be exchanged
        assert not old.exists() and number_in(hidden / "replaced") == "old"
    else:
        assert number(old) == ("old" if place in ("block", "sync") else None)
    with pytest.raises(FileExistsError, match="use --force"):
        write(old, "")
    assert number(old) == (None if place in ("moved", "delete") else "old")
    assert [each.name for each in old.parent.iterdir()] == ["package"]


def number_in(folder: Path) -> str | None:
    """The number in a package that is in a hidden folder."""
    copy = shutil.copytree(folder, folder.parent.parent / "copy")
    try:
        return number(copy)
    finally:
        shutil.rmtree(copy)


@linux
def test_copy_of_an_unfinished_package_is_rejected(old: Path, tmp_path: Path) -> None:
    run("block", PACKAGE_DIR, old)
    (hidden,) = tmp_path.glob(".package.*")
    copy = shutil.copytree(hidden / "package", tmp_path / "copy")
    with pytest.raises(PackageError, match="is an unfinished export"):
        Package.load(copy)


@linux
@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "empty file"])
def test_marker_of_any_kind_is_a_marker(tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(PACKAGE_DIR, tmp_path / "package")
    marker = folder / UNFINISHED
    make: dict[str, Callable[[], object]] = {
        "folder": marker.mkdir,
        "link": lambda: marker.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(marker),
        "empty file": marker.touch,
    }
    make[kind]()
    with pytest.raises(PackageError, match="is an unfinished export"):
        Package.load(folder)


def test_running_export_is_not_swept(tmp_path: Path) -> None:
    destination = tmp_path / "package"
    with package_folder(destination, force=True) as first:
        (first / "sdexport.json").write_text("first")
        code = "import sys; from pathlib import Path; from sdexport.unfinished_exports import sweep"
        command = [sys.executable, "-c", f"{code}; sweep(Path(sys.argv[1]))", str(destination)]
        subprocess.run(command, check=True)
        assert (first / "sdexport.json").exists()
        write(destination, "second")
        assert (first / "sdexport.json").read_text() == "first"
    assert (destination / "sdexport.json").read_text() == "first"
    assert [each.name for each in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize(
    "name",
    [".package.abcdefgh", ".package.backup", ".other.abcdefgh", ".package.abcdefghi", "package.x"],
)
def test_folders_of_others_are_left_alone(tmp_path: Path, name: str) -> None:
    """Without a marker that names the destination nothing is deleted, links least of all."""
    other = tmp_path / name
    other.mkdir()
    (other / "photo.jpg").write_text("x")
    if name == ".other.abcdefgh":
        shutil.copy(hidden_marker(tmp_path / "other"), other / UNFINISHED)
    write(tmp_path / "package", "x")
    assert (other / "photo.jpg").exists()


def hidden_marker(destination: Path) -> Path:
    """A copy of the marker of an export to `destination`."""
    with hidden_folder(destination) as folder:
        return shutil.copy(folder / UNFINISHED, destination.with_name("marker.json"))


def test_links_with_names_of_hidden_folders_are_not_followed(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "photo.jpg").write_text("x")
    shutil.copy(hidden_marker(tmp_path / "package"), real / UNFINISHED)
    (tmp_path / ".package.abcdefgh").symlink_to(real, target_is_directory=True)
    inner = tmp_path / ".package.ijklmnop"
    inner.mkdir()
    shutil.copy(hidden_marker(tmp_path / "package"), inner / UNFINISHED)
    (inner / "package").symlink_to(real, target_is_directory=True)
    write(tmp_path / "package", "x")
    assert (real / "photo.jpg").exists() and not inner.exists()


@pytest.mark.parametrize("content", ["{]", "[]", '{"destination": 3}', "[" * 10_000, "{}"])
def test_damaged_markers_delete_nothing(tmp_path: Path, content: str) -> None:
    folder = tmp_path / ".package.abcdefgh"
    folder.mkdir()
    (folder / UNFINISHED).write_text(content)
    write(tmp_path / "package", "x")
    assert folder.exists()


def test_folder_that_was_abandoned_early_is_swept(tmp_path: Path) -> None:
    """Killed before its marker was written, or meanwhile."""
    content = hidden_marker(tmp_path / "package").read_bytes()
    (tmp_path / "marker.json").unlink()
    (tmp_path / ".package.abcdefgh").mkdir()
    for size, name in ((0, "ijklmnop"), (1, "qrstuvwx"), (len(content) - 1, "yz012345")):
        folder = tmp_path / f".package.{name}"
        folder.mkdir()
        (folder / UNFINISHED).write_bytes(content[:size])
    write(tmp_path / "package", "x")
    assert [each.name for each in tmp_path.iterdir()] == ["package"]


def test_export_that_is_rejected_sweeps_too(tmp_path: Path) -> None:
    """As after an export that was killed when its package was in place."""
    abandoned = tmp_path / ".package.abcdefgh"
    abandoned.mkdir()
    (abandoned / UNFINISHED).touch()
    shutil.copytree(PACKAGE_DIR, tmp_path / "package")
    with pytest.raises(FileExistsError, match="use --force"):
        export(tmp_path / "source", tmp_path / "package")
    assert [each.name for each in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize("early", [True, False])
def test_export_whose_folder_was_taken_for_abandoned_makes_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """Between creating the folder and locking its marker, another process may sweep it."""
    destination = tmp_path / "package"
    swept: list[Path] = []
    lock, make = unfinished_exports._lock, tempfile.mkdtemp

    def sweep_first(folder: Path) -> None:
        if not swept:
            swept.append(folder)
            sweep(destination)
            assert not folder.exists()

    def make_and_lose(**options: Any) -> str:
        folder = make(**options)
        if early:
            sweep_first(Path(folder))
        return folder

    def lose_and_lock(marker: int) -> bool:
        if not early:
            sweep_first(next(tmp_path.glob(".package.*")))
        return lock(marker)

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    monkeypatch.setattr(unfinished_exports, "_lock", lose_and_lock)
    write(destination, "x")
    assert swept and [each.name for each in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize("name", ["ü" * 120, "m" * 240, "a[b]*?", "-x", "日" * 80])
def test_names_that_need_care(tmp_path: Path, name: str) -> None:
    destination = tmp_path / name
    with package_folder(destination, force=False):
        pass
    write(destination, "x", force=True)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert (destination / "sdexport.json").read_text() == "x"


@linux
def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")


@linux
def test_exchange_without_a_function_of_the_c_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    class OldLibrary:
        def __init__(self, library: ctypes.CDLL) -> None:
            self.syscall = library.syscall

    whole = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: OldLibrary(whole(*a, **k)))
    test_exchange_swaps_two_folders(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_force_where_folders_cannot_be_exchanged(
    old: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(folder_exchange, "_exchange", lambda first, second: number)
    write(old, "new", force=True)
    assert (old / "sdexport.json").read_text() == "new"
    assert [each.name for each in old.parent.iterdir()] == ["package"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EBUSY, errno.EIO])
@pytest.mark.parametrize("exchanges", [True, False])
def test_old_package_stays_if_it_cannot_be_moved(
    old: Path, monkeypatch: pytest.MonkeyPatch, number: int, exchanges: bool
) -> None:
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "package" and target == old:
            raise OSError(number, os.strerror(number), str(target))
        return rename(path, target)

    monkeypatch.setattr(folder_exchange, "_exchange", lambda *_: number if exchanges else 22)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="package") as error:
        write(old, "new", force=True)
    assert error.value.errno == number
    assert "old" in (old / "sdexport.json").read_text()
    assert [each.name for each in old.parent.iterdir()] == ["package"]


def test_package_that_became_something_else_is_not_replaced(old: Path) -> None:
    with (
        pytest.raises(FileExistsError, match="is not a package; it is not replaced"),
        package_folder(old, force=True),
    ):
        shutil.rmtree(old)
        old.mkdir()
        (old / "photo.jpg").touch()
    assert [each.name for each in old.iterdir()] == ["photo.jpg"]
    assert [each.name for each in old.parent.iterdir()] == ["package"]


def test_destination_that_vanished_is_written(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(first: bytes, second: bytes) -> int:
        shutil.rmtree(second)
        return errno.ENOENT

    monkeypatch.setattr(folder_exchange, "_exchange", vanish)
    write(old, "new", force=True)
    assert (old / "sdexport.json").read_text() == "new"


@linux
def test_everything_is_on_disk_before_it_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))
    )
    with package_folder(tmp_path / "package", force=False) as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / "model.onnx").touch()
    names = ["sdexport.json", "unet", "unet/model.onnx"]
    assert sorted(synced[:-1]) == [str(folder), *(str(folder / name) for name in names)]
    assert synced[-1] == str(tmp_path)


READER = """
import sys
from sdexport import Package
loads, changes, seen = 0, -1, [None]
print("ready", flush=True)
while loads < int(sys.argv[2]) or changes < 3:
    number = Package.load(sys.argv[1]).manifest.tools["number"]
    if number != seen[-1]:
        seen.append(number)
        changes += 1
    loads += 1
print(*sorted(set(seen[1:])))
"""


@linux
def test_reader_sees_one_whole_package_while_others_replace_it(old: Path, tmp_path: Path) -> None:
    """20 loads or more, until three exchanges were seen: each load is one of the two packages."""
    other = shutil.copytree(PACKAGE_DIR, tmp_path / "other")
    same = shutil.copytree(PACKAGE_DIR, tmp_path / "same")
    for folder, value in ((other, "new"), (same, "old")):
        (folder / "unet" / "config.json").write_text(
            (folder / "unet" / "config.json").read_text().replace("{", "{" + " " * len(value), 1)
        )
        edit_manifest(folder, lambda m, value=value: m["tools"].update(number=value))
        accept_files(folder)
    command = [sys.executable, "-c", READER, str(old), "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None and p.stdout.readline() == "ready\n"
        replaced = 0
        while p.poll() is None:
            with package_folder(old, force=True) as folder:
                shutil.copytree((other, same)[replaced % 2], folder, dirs_exist_ok=True)
            replaced += 1
            time.sleep(0.1)  # a load that begins again and again gives up
        out, errors = p.communicate()
    assert (p.returncode, errors) == (0, "")
    assert out.split() == ["new", "old"]
