"""TensorRT-RTX's compiled kernels in a file."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from sdexport.engines.errors import EngineError
from sdexport.engines.files import write_atomically
from sdexport.engines.guarded_files import read_guarded
from sdexport.engines.messages import one_line
from sdexport.engines.trt.library_calls import LibraryCalls

_log = logging.getLogger(__name__)
RUNTIME_CACHE_LIMIT = 2**30
"""Bytes of a file of compiled kernels."""


class RuntimeCache:
    """TensorRT-RTX's compiled kernels in a file, which saves the next process from compiling them.

    The file begins with a line that holds a digest of the kernels and of the plan that they belong
    to. One that is damaged, of another plan or not of this machine is ignored, and replaced by
    `save`.

    A library that rejects the cache itself is not an error: kernels are compiled each time then,
    and a warning says why.

    Args:
      config: of the engine's execution contexts. path: the file. plan_sha256: of the plan.
    """

    def __init__(self, config: Any, path: Path, plan_sha256: str, calls: LibraryCalls) -> None:
        self._path, self._plan_sha256, self._calls = path, plan_sha256, calls
        self._writable = True
        self._cache: Any = None
        failure = "does not use the cache of compiled kernels"
        try:
            self._cache = calls.value(failure, config.create_runtime_cache)
            self._load()
            calls.value(failure, config.set_runtime_cache, self._cache)
        except EngineError as error:
            _log.warning("%s", error)
            self._writable = False

    def _load(self) -> None:
        kernels = self._read()
        if kernels is None:
            return
        try:
            self._calls.value(f"does not take {self._path}", self._cache.deserialize, kernels)
        except EngineError as error:
            _log.info("%s; it will be replaced", error)

    def _read(self) -> bytes | None:
        """The kernels in the file; None if there is no file that can be used."""
        try:
            content = read_guarded(
                self._path, error=EngineError, folder=self._path.parent, limit=RUNTIME_CACHE_LIMIT
            )
        except FileNotFoundError:
            return None
        except (EngineError, OSError) as error:
            _log.warning("the cache of compiled kernels is not used: %s", one_line(error))
            self._writable = False
            return None
        line, _, kernels = content.partition(b"\n")
        if line != self._first_line(kernels):
            _log.info("%s is damaged or of another plan; it will be replaced", self._path)
            return None
        return kernels

    def _first_line(self, kernels: bytes) -> bytes:
        digest = hashlib.sha256(self._plan_sha256.encode() + kernels).hexdigest()
        return b"sdexport-runtime-cache 1 " + digest.encode()

    def save(self) -> None:
        """Write the file, if the folder can be written and the file is no link, pipe or folder."""
        if not self._writable:
            return
        try:
            kernels = bytes(self._calls.value("has no kernels to keep", self._cache.serialize))
            write_atomically(self._path, self._first_line(kernels) + b"\n" + kernels)
        except (EngineError, OSError) as error:
            _log.info("%s is not written: %s", self._path, error)
