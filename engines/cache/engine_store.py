"""Build an engine if the present one is not up to date, and write it with its sidecar atomically.

The sidecar (cache.sidecar) is the key of the cache: an engine whose sidecar equals the wanted one
is not built again. A lock file keeps a second process from building the same engine.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sdexport.engines.cache.engine_files import checked_files
from sdexport.engines.cache.lock import locked
from sdexport.engines.cache.remembered_hashes import remember_written
from sdexport.engines.cache.sidecar import Sidecar, StoredFile, sidecar_path
from sdexport.engines.cache.staleness import key_differences
from sdexport.engines.errors import EngineError
from sdexport.engines.exit_actions import delete
from sdexport.engines.files import write_atomically
from sdexport.engines.temporary_files import TEMPORARY, temporary_folder


@dataclass(frozen=True)
class Built:
    """An engine that is up to date. built: False if the present one already was."""

    plan: Path
    sidecar: Sidecar
    built: bool
    seconds: float


def build_once(
    plan: Path, wanted: Sidecar, build: Callable[[Path], object], *, rebuild_stale: bool
) -> Built:
    """Build an engine, unless the present one is up to date.

    Args:
      plan: the file to write; its sidecar and further files of `build` go to the same folder.
      wanted: the sidecar without `files`.
      build: writes the engine, under the name of `plan`, into the folder that is its argument;
        names of further files there must begin with the component's name.
      rebuild_stale: replace an engine that was built from or for something else.
    Raises: EngineError: another process builds the same engine, the folder cannot be written, or
      the present engine is stale or damaged. Errors of `build` pass through, and leave no files.
    """
    started = time.perf_counter()
    with _writable(plan), locked(plan.with_suffix(".lock"), f"{plan.stem}: {plan.name}"):
        for abandoned in plan.parent.glob(f".{plan.stem}.*{TEMPORARY}"):  # of a killed process
            delete(abandoned)
        present = _present(plan, wanted, rebuild_stale)
        if present is not None:
            return Built(plan, present, False, 0.0)
        with temporary_folder(f".{plan.stem}.", plan.parent, TEMPORARY) as part:
            build(part)
            sidecar = _into_place(part / plan.name, plan, wanted)
    return Built(plan, sidecar, True, time.perf_counter() - started)


def _into_place(new: Path, plan: Path, wanted: Sidecar) -> Sidecar:
    """Move the files of a new engine to where they belong, and write the sidecar last."""
    others = sorted(file for file in new.parent.iterdir() if file != new)
    files = {file.name: StoredFile.of(file) for file in (new, *others)}
    sidecar = replace(wanted, files=files)
    # in this order a crash in between leaves no engine with the sidecar of another one
    sidecar_path(plan).unlink(missing_ok=True)
    for file in (*others, new):
        os.replace(file, plan.with_name(file.name))
    write_atomically(sidecar_path(plan), sidecar.to_json())
    # the next process need not read what this one has just written and hashed
    remember_written({plan.with_name(name): stored.sha256 for name, stored in files.items()})
    return sidecar


@contextmanager
def _writable(plan: Path) -> Iterator[None]:
    try:
        plan.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if isinstance(error, PermissionError):
            problem = "cannot be written"
        elif error.errno == errno.EROFS:
            problem = "is on a read-only disk"
        else:
            raise
        raise EngineError(
            f"{plan.parent} {problem}; --engine-dir puts engines elsewhere"
        ) from error


def _present(plan: Path, wanted: Sidecar, rebuild_stale: bool) -> Sidecar | None:
    """The sidecar of the present engine if it is up to date; None if it must be built.

    Raises: EngineError: it is stale or damaged, and must not be replaced.
    """
    if not (os.path.lexists(plan) and os.path.lexists(sidecar_path(plan))):  # a build was killed
        return None
    try:
        sidecar = Sidecar.read(plan)
        differences = key_differences(sidecar, wanted)
        if not differences:
            checked_files(plan, sidecar)
            return sidecar
    except EngineError as error:
        differences = [str(error)]
    if not rebuild_stale:
        raise EngineError(
            f"{plan} exists and is stale: {'; '.join(differences)}; --rebuild-stale replaces it"
        )
    return None
