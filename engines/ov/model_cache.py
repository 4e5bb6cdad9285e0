"""OpenVINO's folder of compiled graphs, with a hash next to each file.

OpenVINO finds a compiled graph by a hash of the model, its weights and the settings, and reads it
without checking its content: with one byte changed it computes something else, and says nothing.
So each file's SHA-256 is written next to it, and a file without the right one is deleted before
OpenVINO looks, which then compiles again. That finds damage, not someone who may write to the
folder and changes both.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdexport.engines.cache.engine_files import hashed
from sdexport.engines.errors import EngineError, PackageError
from sdexport.engines.files import write_atomically
from sdexport.engines.guarded_files import CheckedFiles, FileIdentity, read_guarded
from sdexport.engines.messages import one_line

SUBFOLDER = "sdexport"
"""Within the user's folder, whose other files are left alone."""
_DIGEST_LIMIT = 1024
_log = logging.getLogger(__name__)
_compiling = threading.Lock()
"""Held while OpenVINO writes to a folder: no other thread then takes its new file for damaged."""


def cache_folder(cache_dir: Path, name: str) -> Path:
    """The folder for OpenVINO within `cache_dir`; both are created if they are missing.

    Args:
      name: of the component, for messages.
    Raises: EngineError: it cannot be created, or is a link.
    """
    folder = cache_dir / SUBFOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(
            f"{name}: the cache folder {folder} cannot be created: {error.strerror}"
        ) from error
    if folder.is_symlink():
        raise EngineError(f"{name}: the cache folder {folder} is a link; pass its target")
    return folder


@contextmanager
def checked_cache(
    folder: Path | None, name: str, check: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Check a folder of compiled graphs, let a block compile, and hash what is new.

    Args:
      folder: None only compiles and checks. name: of the component, for messages.
      check: called after the block; what is new counts only if it raises nothing.
    Raises: EngineError: a damaged file cannot be deleted, or a file changed during the block.
      What `check` raises.
    """
    if folder is None:
        yield
        check()
        return
    with _compiling:
        intact = _intact(folder, name)
        try:
            with CheckedFiles(intact).unchanged():
                yield
        except PackageError as error:
            raise EngineError(
                f"{name}: a file of {folder} changed while it was read; run it again"
            ) from error
        check()
        for blob in folder.glob("*.blob"):
            if blob not in intact:
                _record(blob)


def _intact(folder: Path, name: str) -> dict[Path, FileIdentity]:
    """The files that have the hash next to them; the others are deleted."""
    intact = {}
    for blob in sorted(folder.glob("*.blob")):
        try:
            recorded = read_guarded(_digest_file(blob), error=EngineError, limit=_DIGEST_LIMIT)
            identity, digest = hashed(blob)
            if digest.encode() == recorded.strip():
                intact[blob] = identity
                continue
            _log.warning("%s: %s is damaged; it is deleted and compiled again", name, blob)
        except FileNotFoundError:
            _log.info("%s: %s has no hash; it is deleted and compiled again", name, blob)
        except EngineError as error:
            _log.warning("%s: %s; it is deleted and compiled again", name, one_line(error))
        try:
            if sys.platform == "win32":  # OpenVINO's files are read-only
                blob.chmod(0o600)
            blob.unlink()
        except OSError as error:
            raise EngineError(f"{name}: {blob} cannot be deleted: {error.strerror}") from error
    return intact


def _record(blob: Path) -> None:
    try:
        write_atomically(_digest_file(blob), hashed(blob)[1] + "\n")
    except (EngineError, OSError) as error:
        _log.info("%s: its hash is not written: %s", blob, one_line(error))


def _digest_file(blob: Path) -> Path:
    return blob.with_suffix(".sha256")
