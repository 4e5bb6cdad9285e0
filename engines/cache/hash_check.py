"""Comparing files with their expected hashes, several at once, while something else goes on.

What is read is a file that the caller has opened, so that one that takes its place meanwhile cannot
pass for it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from sdexport.engines.cache.file_states import present_state, settled, state_of
from sdexport.engines.cache.remembered_hashes import SMALLEST, recall, remember
from sdexport.engines.errors import SDExportError
from sdexport.engines.guarded_files import MIB

_log = logging.getLogger(__name__)
MOST_THREADS = 4
"""Files that are read at once; one core computes SHA-256 at 1 to 2 GB/s."""


@dataclass(frozen=True)
class HashReport:
    """How the hashes of files were compared with the expected ones.

    read: files that this process read.
    remembered: files that an earlier process read, and that have not changed since.
    since: when the first of these was read, in seconds since 1970; None if there are none.
    """

    read: int
    remembered: int = 0
    since: float | None = None

    def __str__(self) -> str:
        if self.since is None:
            return f"{self.read} files read"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.read} files read, {self.remembered} unchanged since they were read at {when}"


class HashCheck:
    """Compares open files with their SHA-256, and closes them; large ones in threads.

    The threads start at once. Hashes that an earlier process computed are used, see
    remembered_hashes, and those of this one are remembered when all files were compared.

    Args:
      files: path, open file and expected hash of each; each is taken when it is needed.
      altered: makes the error for a file that has another hash.
      what: the files are of, for the line that is logged when all are compared.
    """

    def __init__(
        self,
        files: Iterable[tuple[Path, BufferedReader, str]],
        altered: Callable[[Path], SDExportError],
        *,
        what: str,
    ) -> None:
        self._altered, self._what = altered, what
        self._files: dict[Path, _File] = {}
        self._waiting: queue.SimpleQueue[_File] = queue.SimpleQueue()
        self._lock, self._is_complete = threading.Lock(), False
        unknown = self._taken(files)
        for each in sorted(unknown, key=lambda each: each.size, reverse=True):
            self._waiting.put(each)
        for _ in range(min(len(unknown), MOST_THREADS, os.cpu_count() or 1)):
            threading.Thread(target=self._work, name="sdexport-hashes", daemon=True).start()

    def _taken(self, files: Iterable[tuple[Path, BufferedReader, str]]) -> list[_File]:
        """The large files whose hash is not remembered; small ones are read now."""
        unknown = []
        try:
            for path, file, sha256 in files:
                self._files[path] = each = _File(file, sha256)
                if each.size < SMALLEST:
                    each.read()
                elif not each.recalled():
                    unknown.append(each)
        except BaseException:
            for each in unknown:
                each.close()
            raise
        return unknown

    def wait(
        self,
        paths: Collection[Path] | None = None,
        *,
        on_bytes: Callable[[int], object] = lambda size: None,
    ) -> None:
        """Wait until files are compared.

        Args:
          paths: those among them; None for all.
          on_bytes: called with the size of each.
        Raises: what `altered` makes. OSError: a file cannot be read.
        """
        if self._is_complete:
            return
        for path, file in self._files.items():
            if paths is None or path in paths:
                file.done.wait()
                if file.failure is not None:
                    raise file.failure
                if file.sha256 != file.expected:
                    raise self._altered(path)
                on_bytes(file.size)
        if paths is None:
            self._complete()

    def report(self) -> HashReport:
        """How the files were compared; waits for that. Raises: see `wait`."""
        self.wait()
        return self._report()

    def _report(self) -> HashReport:
        times = [file.at for file in self._files.values() if file.at is not None]
        since = min(times) / 1e9 if times else None
        return HashReport(len(self._files) - len(times), len(times), since)

    def _complete(self) -> None:
        with self._lock:
            if not self._is_complete:
                self._is_complete = True
                if self._files:
                    _log.info("%s: every hash matches: %s", self._what, self._report())
                remember((f.state, f.sha256) for f in self._files.values() if f.at is None)

    def _work(self) -> None:
        while True:
            try:
                file = self._waiting.get_nowait()
            except queue.Empty:
                return
            file.read()


class _File:
    """An open file, the hash that it should have, and the one that it has.

    at: when an earlier process computed it, in ns since 1970; None if this one does.
    """

    def __init__(self, file: BufferedReader, expected: str) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self.expected, self.sha256 = expected, ""
        self.at: int | None = None
        self._present = present_state(file.fileno()) if self.size >= SMALLEST else None
        self.state = settled(self._present)
        self.failure: BaseException | None = None
        self.done = threading.Event()
        self._file = file

    def recalled(self) -> bool:
        """Whether the expected hash is remembered for the file as it is."""
        found = recall(self._present, self.expected)
        if found is None:
            return False
        self.sha256, self.at = found.sha256, found.at
        self.close()
        return True

    def read(self) -> None:
        """Compute the hash; what goes wrong is kept in `failure`."""
        try:
            self.sha256 = _digest(self._file)
            if self.state is not None and state_of(self._file.fileno()) != self.state:
                self.state = None  # it is being written to, so the hash is of no state
        except BaseException as error:  # noqa: BLE001  `wait` raises it
            self.failure = error
        self.close()

    def close(self) -> None:
        """Close the file, whose hash is known or not wanted."""
        self._file.close()
        self.done.set()


def _digest(file: BufferedReader) -> str:
    digest, buffer = hashlib.sha256(), bytearray(MIB)
    with memoryview(buffer) as view:
        while size := file.readinto(buffer):
            digest.update(view[:size])
    return digest.hexdigest()
