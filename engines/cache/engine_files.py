"""The files of a built engine: each is hashed once by a process, before its outputs are used."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from sdexport.engines.cache.hash_check import HashCheck
from sdexport.engines.cache.sidecar import Sidecar, sidecar_path
from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import CheckedFiles, FileIdentity, open_guarded

MOST_HASHES = 1024
"""Hashes that are remembered; the least recently used one is forgotten first."""
SETTLED_NS = 2 * 10**9
"""Age of a file from which on a change shows in its time: file systems count it in steps of up to
two seconds. The hash of a younger file is not remembered."""

_known: OrderedDict[FileIdentity, str] = OrderedDict()
_lock = threading.Lock()


def checked_files(
    plan: Path, sidecar: Sidecar, *, on_bytes: Callable[[int], object] = lambda size: None
) -> CheckedFiles:
    """Compare the hash of every file of an engine with the one in its sidecar.

    Args:
      plan: the engine; its further files are in the same folder. sidecar: its own.
      on_bytes: called with the size of each file that was checked, for a progress bar.
    Returns: the identity of each file, to compare when a library opens it by its path.
    Raises: EngineError: a file was altered, is missing, or is no regular file.
    """
    check = EngineCheck(plan, sidecar)
    check.wait(on_bytes=on_bytes)
    return check.files


class EngineCheck:
    """`checked_files` in two parts: large files are hashed in threads until `wait` returns.

    Attributes:
      files: the identity of each file.
    Raises: EngineError: a file is missing, or is no regular file.
    """

    def __init__(self, plan: Path, sidecar: Sidecar) -> None:
        self._sidecar, self._known = sidecar_path(plan), 0
        self._new: dict[FileIdentity, str] = {}
        identities: dict[Path, FileIdentity] = {}

        def unknown() -> Iterator[tuple[Path, BufferedReader, str]]:
            for name, stored in sidecar.files.items():
                path = plan.with_name(name)
                file = _opened(path)
                identities[path] = identity = FileIdentity.of(os.fstat(file.fileno()))
                if _recalled(identity) == stored.sha256:
                    file.close()
                    self._known += identity.size
                else:
                    self._new[identity] = stored.sha256
                    yield path, file, stored.sha256

        self._check = HashCheck(unknown(), self._altered, what=str(plan))
        self.files = CheckedFiles(identities)

    def wait_for(self, path: Path) -> None:
        """Wait until one of the files is compared. Raises: see `wait`."""
        self._check.wait([path])

    def wait(self, *, on_bytes: Callable[[int], object] = lambda size: None) -> None:
        """Wait until every file is compared.

        Args:
          on_bytes: called with the size of each file.
        Raises: EngineError: a file was altered. OSError: it cannot be read.
        """
        on_bytes(self._known)
        self._check.wait(on_bytes=on_bytes)
        for identity, digest in self._new.items():
            _keep(identity, digest)

    def _altered(self, path: Path) -> EngineError:
        return EngineError(
            f"{path} was damaged or altered: its SHA-256 is not the one in {self._sidecar.name}"
        )


def hashed(path: Path) -> tuple[FileIdentity, str]:
    """The identity and the SHA-256 of a file, which is read only if it is not known already.

    Raises: EngineError: it is missing, no regular file, a link, or being written to.
    """
    with _opened(path) as file:
        identity = FileIdentity.of(os.fstat(file.fileno()))
        if known := _recalled(identity):
            return identity, known
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if FileIdentity.of(os.fstat(file.fileno())) != identity:
            raise EngineError(f"{path} is being written to")
    _keep(identity, digest)
    return identity, digest


def _opened(path: Path) -> BufferedReader:
    try:
        return open_guarded(path, error=EngineError, folder=path.parent)
    except FileNotFoundError:
        raise EngineError(f"{path} is missing") from None


def _recalled(identity: FileIdentity) -> str | None:
    """The hash of a file that this process has computed."""
    with _lock:
        if identity in _known:
            _known.move_to_end(identity)
        return _known.get(identity)


def _keep(identity: FileIdentity, digest: str) -> None:
    if time.time_ns() - identity.mtime_ns > SETTLED_NS:
        with _lock:
            _known[identity] = digest
            while len(_known) > MOST_HASHES:
                _known.popitem(last=False)
