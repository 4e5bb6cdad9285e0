"""Files that are not trusted: links, pipes, devices, and files of another size or identity."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import (
    UNCHECKED,
    CheckedFiles,
    FileIdentity,
    open_guarded,
    parsing,
    read_guarded,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
LIMIT = 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "package"
    (inside / "unet").mkdir(parents=True)
    (inside / "unet" / "config.json").write_bytes(b"content")
    (tmp_path / "secret").write_bytes(b"secret")
    return inside


def _read(path: Path, folder: Path | None) -> bytes:
    return read_guarded(path, error=PackageError, folder=folder, limit=LIMIT)


@pytest.mark.parametrize("guarded", [True, False])
def test_guarded_reads_a_regular_file(folder: Path, guarded: bool) -> None:
    assert _read(folder / "unet" / "config.json", folder if guarded else None) == b"content"


@pytest.mark.parametrize("guarded", [True, False])
def test_guarded_never_waits_for_a_pipe(folder: Path, guarded: bool) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(PackageError, match="pipe is not a regular file"):
        _read(folder / "pipe", folder if guarded else None)


@pytest.mark.parametrize("guarded", [True, False])
def test_guarded_rejects_devices_and_folders(folder: Path, guarded: bool) -> None:
    if not guarded:
        with pytest.raises(PackageError, match="not a regular file"):
            _read(Path("/dev/zero"), None)
    with pytest.raises(PackageError, match="is a folder"):
        _read(folder / "unet", folder if guarded else None)


def test_guarded_follows_a_link_only_without_a_folder(folder: Path) -> None:
    (folder / "link").symlink_to("unet/config.json")
    assert _read(folder / "link", None) == b"content"
    with pytest.raises(PackageError, match="link is a link"):
        _read(folder / "link", folder)


@pytest.mark.parametrize("target", ["../secret", "/dev/zero", "missing", "link", "unet"])
def test_guarded_rejects_links_of_every_kind(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    with pytest.raises(PackageError, match="is a link"):
        _read(folder / "link", folder)


def test_guarded_rejects_a_linked_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_bytes(b"other")
    (folder / "vae").symlink_to(tmp_path / "other")
    (folder / "vae2").symlink_to("unet")
    for name in ("vae", "vae2"):
        with pytest.raises(PackageError, match="linked folder"):
            _read(folder / name / "config.json", folder)


def test_guarded_accepts_a_folder_that_is_itself_a_link(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(folder)
    assert _read(link / "unet" / "config.json", link) == b"content"


@pytest.mark.parametrize("path", ["../secret", "unet/../../secret", "."])
def test_guarded_stays_inside_the_folder(folder: Path, path: str) -> None:
    with pytest.raises(PackageError, match="outside"):
        _read(folder / path, folder)


def test_guarded_names_a_missing_file(folder: Path) -> None:
    for path in ("unet/missing.json", "missing/config.json", "unet/config.json/inside"):
        with pytest.raises(FileNotFoundError) as caught:
            _read(folder / path, folder)
        assert str(folder / path) in str(caught.value)


def test_guarded_rejects_a_name_with_a_null(folder: Path) -> None:
    for guard in (folder, None):
        with pytest.raises(PackageError, match="no file name"):
            _read(folder / "a\0b", guard)


def test_guarded_bounds_the_size(folder: Path) -> None:
    (folder / "large").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(PackageError, match="has 101 bytes; at most 100 are read"):
        _read(folder / "large", folder)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_guarded_bounds_a_file_that_hides_its_size() -> None:
    with pytest.raises(PackageError, match="longer than 100 bytes"):
        _read(Path("/proc/self/smaps"), None)


@pytest.mark.parametrize("inner", [".", "export"])
def test_guarded_follows_a_hub_caches_snapshot_into_its_blobs(tmp_path: Path, inner: str) -> None:
    repo = tmp_path / "models--a--b"
    folder = repo / "snapshots" / "0123" / inner
    (folder / "unet").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "abcd").write_bytes(b"blob")
    (tmp_path / "secret").write_bytes(b"secret")
    blob = os.path.relpath(repo / "blobs" / "abcd", folder / "unet")
    (folder / "unet" / "config.json").symlink_to(blob)
    assert _read(folder / "unet" / "config.json", folder) == b"blob"
    (repo / "blobs" / "chain").symlink_to(tmp_path / "secret")
    for number, target in enumerate(
        (tmp_path / "secret", repo / "blobs" / "chain", repo / "blobs")
    ):
        (folder / "unet" / f"{number}").symlink_to(target)
        with pytest.raises(PackageError, match=r"link|folder"):
            _read(folder / "unet" / f"{number}", folder)


def _checked(path: Path) -> CheckedFiles:
    return CheckedFiles({path: FileIdentity.of(path.stat())})


@pytest.mark.parametrize("change", ["replace", "write", "delete", "link"])
def test_checked_files_notice_every_change(folder: Path, change: str) -> None:
    path = folder / "unet" / "config.json"
    files = _checked(path)
    files.check()
    if change == "replace":
        (folder / "new").write_bytes(b"content")
        os.utime(folder / "new", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        os.replace(folder / "new", path)
    elif change == "write":
        path.write_bytes(b"changed")
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
        if change == "link":
            path.symlink_to(folder.parent / "secret")
    with pytest.raises(PackageError, match=r"config\.json: the package changed on disk; load it"):
        files.check()


def test_checked_files_notice_a_change_while_a_library_opens_them(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    with pytest.raises(PackageError, match="changed on disk"), _checked(path).unchanged():
        path.unlink()
        raise RuntimeError("the library found no file")


def test_checked_files_know_no_others(folder: Path) -> None:
    files = _checked(folder / "unet" / "config.json")
    with pytest.raises(PackageError, match="changed on disk"):
        files.of([folder / "new"])
    UNCHECKED.of([folder / "new"]).check()


def test_parsing_keeps_errors_about_paths_and_turns_all_others() -> None:
    class OddError(Exception):
        pass

    for failure, text in (
        (OddError("odd\nlines"), "file is damaged: odd lines"),
        (KeyError("name"), "file is damaged: no 'name'"),
        (OSError("bad archive"), "file is damaged: bad archive"),
        (RecursionError(), "file is damaged: RecursionError"),
        (InvalidArgumentError("eta is 2"), "file is damaged: eta is 2"),
    ):
        with pytest.raises(PackageError, match=text), parsing(PackageError, "file"):
            raise failure
    with pytest.raises(FileNotFoundError), parsing(PackageError, "file"):
        open_guarded(Path("/missing/file"), error=PackageError)
    with pytest.raises(MemoryError), parsing(PackageError, "file"):
        raise MemoryError
