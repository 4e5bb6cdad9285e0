"""The folder of a new package: it appears complete, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sdexport.engines.exit_actions import UNDO, delete
from sdexport.runtime.packages.manifest import MANIFEST


def check_destination(destination: Path, *, force: bool) -> None:
    """Raises: FileExistsError: something is there, and it must not be replaced."""
    if not destination.exists():
        return
    if not force:
        raise FileExistsError(f"{destination} exists; use --force to replace it")
    replaceable = destination.is_dir() and (
        (destination / MANIFEST).is_file() or not any(destination.iterdir())
    )
    if not replaceable:
        raise FileExistsError(f"{destination} exists and is not a package; it is not replaced")


@contextmanager
def package_folder(destination: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder next to `destination`, renamed to it when the block ends without an error.

    Raises: FileExistsError: see check_destination; or another process created the destination in
      the meantime.
    """
    check_destination(destination, force=force)
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        with UNDO.during(partial(delete, folder)):
            folder.chmod(0o777 & ~_umask())
            yield folder
        _move_into_place(folder, destination, force=force)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _move_into_place(folder: Path, destination: Path, *, force: bool) -> None:
    """Rename; what was there is deleted last, when the new package is in its place."""
    old = None
    if destination.exists() and force:
        old = folder.with_name(folder.name + ".old")
        os.replace(destination, old)
    try:
        folder.rename(destination)
    except OSError as error:
        if old is not None:
            os.replace(old, destination)
        if destination.exists():
            raise FileExistsError(
                f"{destination} was created by another process in the meantime; it is not replaced"
            ) from error
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
