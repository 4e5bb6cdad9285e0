"""Hashes of large files that an earlier process computed, in the user's cache folder.

A hash is remembered for a state of a file (file_states), and holds for no other file and no other
state. It can only confirm: a file whose remembered hash is not the expected one is read again. The
list is used only if it is this user's and nobody else may write to it, and each entry only if its
own digest fits. Someone who may write to the user's cache can change that too, and could as well
replace this program: packages that must be signed are always read (Package.load).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sdexport.engines.cache.file_states import FileState, state_of_written
from sdexport.engines.cache.lock import locked
from sdexport.engines.cache.user_cache import user_cache
from sdexport.engines.errors import EngineError
from sdexport.engines.files import atomic_write
from sdexport.engines.guarded_files import JSON_LIMIT, MIB, open_guarded, parsing, read_limited
from sdexport.engines.json_text import parse_json
from sdexport.engines.messages import one_line

SMALLEST = 16 * MIB
"""Bytes of a file from which on its hash is remembered; smaller ones take 10 ms to read."""
MOST = 1024
"""Entries of the list; those that were computed first are dropped."""
SUBFOLDER = "hashes"
NAME = "hashes-1.json"
"""The number is the format's: another one has another file."""
_TRIES, _PAUSE = 20, 0.02
"""Of a process that waits for another one which writes the list; pause in seconds."""
_log = logging.getLogger(__name__)
_known: dict[Path, Mapping[str, Remembered]] = {}
_lock = threading.Lock()
_ignored: ContextVar[bool] = ContextVar("ignored", default=False)


@dataclass(frozen=True)
class Remembered:
    """The SHA-256 of a file in one state. at: when it was computed, in ns since 1970."""

    state: FileState
    sha256: str
    at: int

    def to_json(self) -> dict[str, Any]:
        """An entry of the list, with a digest over the others of its values."""
        values = {**asdict(self.state), "sha256": self.sha256, "at": self.at}
        return {**values, "check": _digest(values)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Remembered | None:
        """What an entry says; None if its values do not match its digest."""
        values = dict(entry)
        if values.pop("check") != _digest(values):
            return None
        sha256, at = values.pop("sha256"), values.pop("at")
        return cls(FileState(**values), str(sha256), int(at))


@contextmanager
def nothing_remembered(ignore: bool = True) -> Iterator[None]:
    """Let no remembered hash be used in this block, in this thread; new ones are remembered.

    Args:
      ignore: False changes nothing.
    """
    token = _ignored.set(ignore or _ignored.get())
    try:
        yield
    finally:
        _ignored.reset(token)


def is_nothing_remembered() -> bool:
    """Whether the caller is in a block of `nothing_remembered`."""
    return _ignored.get()


def recall(state: FileState | None, expected: str | None = None) -> Remembered | None:
    """What is remembered of a file in this state, if that is the expected SHA-256."""
    if state is None or state.size < SMALLEST or _ignored.get():
        return None
    folder = user_cache(SUBFOLDER)
    if folder is None:
        return None
    with _lock:
        if folder not in _known:
            _known[folder] = _read(folder)
        found = _known[folder].get(_key(state))
    is_it = found is not None and found.state == state and expected in (None, found.sha256)
    return found if is_it else None


def remember(hashes: Iterable[tuple[FileState | None, str]]) -> None:
    """Add hashes that were just computed, of states from before and after it, to the list.

    What cannot be written is logged once: the next process then reads the files again.
    """
    now = time.time_ns()
    new = [
        Remembered(state, digest, now)
        for state, digest in hashes
        if state is not None and state.size >= SMALLEST
    ]
    folder = user_cache(SUBFOLDER) if new else None
    if folder is None:
        return
    try:
        with _lock, _locked(folder):
            entries = {**_read(folder), **{_key(each.state): each for each in new}}
            latest = sorted(entries.values(), key=lambda each: each.at)[-MOST:]
            _known[folder] = {_key(each.state): each for each in latest}
            _write(folder / NAME, latest)
    except (OSError, EngineError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        _warn_once(f"hashes are not remembered: {folder / NAME}: {reason}")


def remember_written(hashes: Mapping[Path, str]) -> None:
    """Add the hashes of files that this process has written, hashed and then renamed.

    Args:
      hashes: the path of each, and its SHA-256.
    """
    known: list[tuple[FileState | None, str]] = []
    for path, digest in hashes.items():
        with suppress(OSError, EngineError), open_guarded(path, error=EngineError) as file:
            known.append((state_of_written(file.fileno()), digest))
    remember(known)


def _key(state: FileState) -> str:
    return f"{state.device}:{state.inode}"


def _digest(values: Mapping[str, Any]) -> str:
    content = json.dumps(values, sort_keys=True, allow_nan=False)
    return hashlib.sha256(f"{NAME} {content}".encode()).hexdigest()


def _write(path: Path, entries: Iterable[Remembered]) -> None:
    content = json.dumps({"hashes": [each.to_json() for each in entries]}, indent=0)
    if os.path.lexists(path) and not path.is_symlink() and not path.is_file():
        raise EngineError("there is something else than a file")
    with atomic_write(path) as file:
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), 0o600)
        file.write(content.encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for other processes that write the list; not for long, as it is only a list.

    Raises: EngineError: another process holds the lock all the time.
    """
    with ExitStack() as lock:
        for attempt in range(_TRIES):
            try:
                lock.enter_context(locked(folder / "hashes.lock", "the list of hashes"))
                break
            except EngineError:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(_PAUSE)
        yield


def _read(folder: Path) -> dict[str, Remembered]:
    """The entries of the list by key; none, after a warning, if it is damaged or not trusted."""
    path = folder / NAME
    try:
        with open_guarded(path, error=EngineError, folder=folder, limit=JSON_LIMIT) as file:
            if problem := _not_ours(os.fstat(file.fileno())):
                raise EngineError(f"{path} {problem}")
            content = read_limited(file, path, error=EngineError, limit=JSON_LIMIT)
        with parsing(EngineError, path):
            listed = parse_json(content.decode(), strict=True)["hashes"]
            entries = [Remembered.from_json(entry) for entry in listed]
    except FileNotFoundError:
        return {}
    except (OSError, EngineError) as error:
        _warn_once(f"remembered hashes are not used, and files are read again: {one_line(error)}")
        return {}
    intact = [entry for entry in entries if entry is not None]
    if len(intact) < len(entries):
        _warn_once(f"{path}: {len(entries) - len(intact)} entries are damaged and not used")
    return {_key(entry.state): entry for entry in intact}


def _not_ours(status: os.stat_result) -> str:
    if not hasattr(os, "geteuid"):
        return ""
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "may be written by other users"
    return ""


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
