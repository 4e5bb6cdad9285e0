"""Hashes that one process leaves for the next: only of unchanged files, and never in the way."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdexport.engines.cache import file_states, hash_check, remembered_hashes, user_cache
from sdexport.engines.cache.file_states import FileState, state_of
from sdexport.engines.cache.hash_check import HashCheck
from sdexport.engines.cache.remembered_hashes import (
    NAME,
    nothing_remembered,
    recall,
    remember,
    remember_written,
)
from sdexport.engines.errors import PackageError
from sdexport.engines.files import sha256_of

STATE = FileState(1, 2, 2**30, 3, 4, "boot")
DIGEST = "0" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own, whose list is not known yet; small and young files count too."""
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(file_states, "SETTLED_NS", 0)
    for module in (remembered_hashes, hash_check):
        monkeypatch.setattr(module, "SMALLEST", 1)
    _forget()
    yield tmp_path / "cache" / "hashes"
    _forget()


def _forget() -> None:
    remembered_hashes._known.clear()
    remembered_hashes._warn_once.cache_clear()
    user_cache._warn_once.cache_clear()


def _recalled(state: FileState) -> str | None:
    """What another process would recall."""
    _forget()
    found = recall(state)
    return found and found.sha256


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file on a file system whose times can be relied on; skips where there is none."""
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    if _state(path) is None:
        pytest.skip("the folder for temporary files is on a file system without reliable times")
    return path


def _state(path: Path) -> FileState | None:
    with path.open("rb") as opened:
        return state_of(opened.fileno())


def _check(path: Path, expected: str | None = None) -> HashCheck:
    files = [(path, path.open("rb"), expected or sha256_of(path))]
    return HashCheck(files, lambda path: PackageError(f"{path.name} was altered"), what="package")


def test_a_hash_is_remembered_by_the_next_process_for_the_same_state_only(cache: Path) -> None:
    remember([(STATE, DIGEST)])
    assert _recalled(STATE) == DIGEST
    assert recall(STATE, DIGEST) and not recall(STATE, "1" * 64)
    for name, value in vars(STATE).items():
        other = replace(STATE, **{name: f"{value}x" if name == "boot" else value + 1})
        assert recall(other) is None, name
    with nothing_remembered():
        assert recall(STATE) is None
    with nothing_remembered(False):
        assert recall(STATE)
    assert (cache / NAME).stat().st_mode & 0o777 == (0o600 if os.name == "posix" else 0o666)


def test_an_entry_cannot_be_moved_to_another_file(cache: Path) -> None:
    remember([(STATE, DIGEST)])
    text = (cache / NAME).read_text(encoding="utf-8")
    (cache / NAME).write_text(text.replace('"inode": 2', '"inode": 5'), encoding="utf-8")
    assert _recalled(STATE) is None and recall(replace(STATE, inode=5)) is None


def test_a_file_is_read_once_until_it_changes(file: Path) -> None:
    first, second = _check(file).report(), _check(file).report()
    assert (first.read, first.remembered, first.since) == (1, 0, None)
    assert (second.read, second.remembered) == (0, 1)
    assert second.since is not None and "unchanged since they were read at 2" in str(second)
    status = file.stat()
    file.write_bytes(b"WEIGHTS")  # as long as before, and with the same time of its content
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(PackageError, match="weights was altered"):
        _check(file, json.loads(_list())["hashes"][0]["sha256"]).wait()
    assert _check(file).report().read == 1


def _list() -> str:
    return (Path(os.environ[user_cache.VARIABLE]) / "hashes" / NAME).read_text(encoding="utf-8")


def test_a_remembered_hash_never_rejects_a_file(file: Path) -> None:
    state = _state(file)
    remember([(state, DIGEST)])
    assert _recalled(state) == DIGEST  # type: ignore[arg-type]
    assert _check(file).report().read == 1


def test_a_write_through_a_mapping_shows(file: Path) -> None:
    import mmap

    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[0] = ord("x")
        _check(file).wait()
        before = _state(file)
        mapped[0] = ord("y")
        assert _state(file) != before
        assert _check(file).report().read == 1


def test_young_files_are_not_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_states, "SETTLED_NS", 3600 * 10**9)
    assert _state(file) is None
    _check(file).wait()
    assert _check(file).report().read == 1


def _renamed(file: Path) -> Path:
    """The file after its content was complete for a while, and was then renamed."""
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - 2 * file_states.EXACT_NS))
    return file.rename(file.with_name("renamed"))


def test_a_file_that_this_process_wrote_is_remembered_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest = _renamed(file), sha256_of(file.with_name("renamed"))
    remember_written({path: digest, file.with_name("missing"): digest})
    _forget()
    monkeypatch.setattr(file_states, "SETTLED_NS", 3600 * 10**9)
    assert _check(path).report().remembered == 1
    path.write_bytes(b"WEIGHTS")
    assert _check(path).report().read == 1


def test_a_file_whose_content_is_as_new_as_its_name_is_not_remembered(file: Path) -> None:
    status = file.stat()
    path = file.rename(file.with_name("renamed"))
    os.utime(path, ns=(status.st_atime_ns, path.stat().st_ctime_ns))
    remember_written({path: sha256_of(path)})
    _forget()
    assert _check(path).report().read == 1


def test_a_time_in_the_future_is_not_relied_on(file: Path) -> None:
    os.utime(file, ns=(2**62, 2**62))
    assert _state(file) is None


@pytest.mark.parametrize("unknown", ["_boot", "_file_system"])
def test_other_systems_read_every_file(
    file: Path, unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_states, unknown, lambda *arguments: "")
    assert _state(file) is None
    _check(file).wait()
    assert _check(file).report().read == 1


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hash_check._digest

    def read_and_change(opened: Any) -> str:
        found = digest(opened)
        file.write_bytes(b"another")
        return found

    monkeypatch.setattr(hash_check, "_digest", read_and_change)
    _check(file).wait()
    monkeypatch.undo()
    assert not Path(os.environ.get(user_cache.VARIABLE, "none")).exists()


def _flip(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"0000", b"1000", 1))


def _open_to_others(path: Path) -> None:
    path.chmod(0o666)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.rename(path.with_name("target"))
    path.symlink_to("target")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged: "),
    "empty": (lambda path: path.write_bytes(b""), "is damaged: "),
    "rotten": (_flip, "1 entries are damaged and not used"),
    "no JSON": (lambda path: path.write_bytes(b"\xff\0" * 99), "is damaged: "),
    "another JSON": (lambda path: path.write_bytes(b'{"hashes": {"a": 1}}'), "is damaged: "),
    "a list": (lambda path: path.write_bytes(b"[]"), "is damaged: "),
    "huge": (lambda path: path.write_bytes(b" " * 5_000_000), "bytes; at most "),
    "of others": (_open_to_others, "may be written by other users"),
    "pipe": (_pipe, "is not a regular file"),
    "link": (_link, "is a link"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
}


@pytest.mark.skipif(os.name != "posix", reason="pipes, links and permissions of POSIX")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_is_named_and_not_used(
    cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    remember([(STATE, DIGEST)])
    change, words = DAMAGES[damage]
    change(cache / NAME)
    assert _recalled(STATE) is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert words in message and str(cache / NAME) in message and "\n" not in message
    remember([(STATE, DIGEST)])  # mends it, unless there is something else than a file
    assert (_recalled(STATE) is None) == (damage in ("pipe", "folder"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users of POSIX")
def test_the_list_of_another_user_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remember([(STATE, DIGEST)])
    ours = os.geteuid()
    monkeypatch.setattr(user_cache.os, "geteuid", lambda: ours + 1)
    assert _recalled(STATE) is None
    assert "belongs to another user" in caplog.text


def test_what_cannot_be_written_is_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(remembered_hashes, "atomic_write", full)
    for _ in range(2):
        remember([(STATE, DIGEST)])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"hashes are not remembered: {cache / NAME}: No space left on device"
    )


def test_without_a_cache_nothing_is_remembered_or_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, file: Path
) -> None:
    monkeypatch.setenv(user_cache.VARIABLE, user_cache.OFF)
    _check(file).wait()
    assert _check(file).report().read == 1 and not caplog.records


def test_the_list_is_bounded_and_drops_the_oldest(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered_hashes, "MOST", 3)
    for inode in range(5):
        remember([(replace(STATE, inode=inode), DIGEST)])
    _forget()
    kept = [inode for inode in range(5) if recall(replace(STATE, inode=inode))]
    assert kept == [2, 3, 4]


def test_processes_that_write_at_once_lose_nothing(cache: Path) -> None:
    program = (
        "import sys\n"
        "from sdexport.engines.cache.file_states import FileState\n"
        "from sdexport.engines.cache.remembered_hashes import remember\n"
        "for inode in range(10):\n"
        "    remember([(FileState(int(sys.argv[1]), inode, 2**30, 3, 4, 'boot'), 'a' * 64)])\n"
    )
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen([*command, str(device)]) for device in (1, 2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    both = [replace(STATE, device=device, inode=inode) for device in (1, 2) for inode in range(10)]
    assert all(map(_recalled, both))


def test_files_are_compared_while_the_caller_goes_on(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    digest = hash_check._digest
    monkeypatch.setattr(
        hash_check, "_digest", lambda opened: (go_on.wait(60) and digest(opened)) or ""
    )
    check = _check(file)
    go_on.set()  # would never be reached if the constructor waited
    check.wait([file])
    check.wait()


def test_what_goes_wrong_in_a_thread_is_raised_by_every_wait(file: Path) -> None:
    opened = file.open("rb")
    descriptor = os.open(file.parent, os.O_RDONLY)
    os.dup2(descriptor, opened.fileno())  # reading a folder fails
    os.close(descriptor)
    check = HashCheck([(file, opened, DIGEST)], lambda path: PackageError("altered"), what="it")
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            check.wait()


def test_open_files_are_closed_if_one_cannot_be_opened(file: Path) -> None:
    first = file.open("rb")

    def files() -> Iterator[Any]:
        yield file, first, DIGEST
        raise PackageError("the second is missing")

    with pytest.raises(PackageError, match="the second is missing"):
        HashCheck(files(), lambda path: PackageError("altered"), what="package")
    assert first.closed
