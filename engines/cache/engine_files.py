"""The files of a built engine: each is hashed once by a process, before it is opened."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

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
    identities: dict[Path, FileIdentity] = {}
    for name, stored in sidecar.files.items():
        path = plan.with_name(name)
        identities[path], digest = hashed(path)
        if digest != stored.sha256:
            raise EngineError(
                f"{path} was damaged or altered: its SHA-256 is not the one in "
                f"{sidecar_path(plan).name}"
            )
        on_bytes(stored.size)
    return CheckedFiles(identities)


def hashed(path: Path) -> tuple[FileIdentity, str]:
    """The identity and the SHA-256 of a file, which is read only if it is not known already.

    Raises: EngineError: it is missing, no regular file, a link, or being written to.
    """
    try:
        file = open_guarded(path, error=EngineError, folder=path.parent)
    except FileNotFoundError:
        raise EngineError(f"{path} is missing") from None
    with file:
        identity = FileIdentity.of(os.fstat(file.fileno()))
        with _lock:
            if identity in _known:
                _known.move_to_end(identity)
                return identity, _known[identity]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if FileIdentity.of(os.fstat(file.fileno())) != identity:
            raise EngineError(f"{path} is being written to")
    if time.time_ns() - identity.mtime_ns > SETTLED_NS:
        with _lock:
            _known[identity] = digest
            while len(_known) > MOST_HASHES:
                _known.popitem(last=False)
    return identity, digest
