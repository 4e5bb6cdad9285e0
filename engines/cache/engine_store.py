"""Write an engine and its sidecar: once at a time, whole or not at all, and only where needed.

The sidecar (cache.sidecar) is the key of the cache: an engine whose sidecar says what is asked
for is not built again.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sdexport.engines.cache.lock import locked
from sdexport.engines.cache.sidecar import Sidecar, sidecar_path
from sdexport.engines.errors import EngineError
from sdexport.engines.files import sha256_of, write_atomically


@dataclass(frozen=True)
class Built:
    """What was done. built: False if the engine that was there is the one asked for."""

    plan: Path
    sidecar: Sidecar
    built: bool
    seconds: float


def build_once(
    plan: Path, wanted: Sidecar, make: Callable[[Path], object], *, rebuild_stale: bool
) -> Built:
    """Have an engine made, unless the one that is there is just that.

    Args:
      plan: the file to write; its sidecar lies beside it, and what else `make` writes.
      wanted: the sidecar without sizes and hashes.
      make: writes the engine, under the name of `plan`, into the folder that it is given; names
        of further files there must begin with that of the component.
      rebuild_stale: replace an engine that was built from or for something else.
    Raises: EngineError: another process builds the same, the folder cannot be written, or a stale
      engine is there. What `make` raises; then nothing is left behind.
    """
    started = time.perf_counter()
    with _writable(plan), locked(plan.with_suffix(".lock"), f"{plan.stem}: {plan.name}"):
        present = _present(plan, wanted, rebuild_stale)
        if present is not None:
            return Built(plan, present, False, 0.0)
        for abandoned in plan.parent.glob(f".{plan.stem}.*.part"):  # by a builder that was killed
            shutil.rmtree(abandoned, ignore_errors=True)
        part = Path(tempfile.mkdtemp(".part", f".{plan.stem}.", plan.parent))
        try:
            make(part)
            sidecar = _into_place(part / plan.name, plan, wanted)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return Built(plan, sidecar, True, time.perf_counter() - started)


def worker_environment() -> dict[str, str]:
    """The variables with which a builder in another Python process finds this project."""
    top = sys.modules[__name__.partition(".")[0]]  # the package in which this module lies
    root = str(Path(str(top.__file__)).resolve().parents[1])
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _into_place(made: Path, plan: Path, wanted: Sidecar) -> Sidecar:
    others = sorted(file for file in made.parent.iterdir() if file != made)
    sidecar = replace(
        wanted,
        plan_size=made.stat().st_size,
        plan_sha256=sha256_of(made),
        files={file.name: file.stat().st_size for file in others},
    )
    # in this order a process that dies in between leaves no engine with a wrong sidecar
    sidecar_path(plan).unlink(missing_ok=True)
    for file in (*others, made):
        os.replace(file, plan.with_name(file.name))
    write_atomically(sidecar_path(plan), sidecar.to_json())
    return sidecar


@contextmanager
def _writable(plan: Path) -> Iterator[None]:
    try:
        plan.parent.mkdir(parents=True, exist_ok=True)
        yield
    except PermissionError as error:
        raise EngineError(
            f"{plan.parent} cannot be written; --engine-dir puts engines elsewhere"
        ) from error
    except OSError as error:
        if error.errno == 30:  # EROFS
            raise EngineError(
                f"{plan.parent} is on a read-only disk; --engine-dir puts engines elsewhere"
            ) from error
        raise


def _present(plan: Path, wanted: Sidecar, rebuild_stale: bool) -> Sidecar | None:
    """The sidecar of an engine that is the one wanted; None if it must be built."""
    if not plan.exists():
        return None
    try:
        found = Sidecar.read(plan)
        differences = found.differences(wanted)
    except (EngineError, FileNotFoundError) as error:
        found, differences = None, [str(error)]
    if found is not None and not differences:
        return found
    if not rebuild_stale:
        raise EngineError(
            f"{plan} is there and is not what is asked for: {'; '.join(differences)}; "
            "--rebuild-stale replaces it"
        )
    return None
