"""The folder of a new package: it appears complete, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sdexport.engines.exit_actions import UNDO
from sdexport.folder_exchange import replace_folder, sync, sync_tree
from sdexport.runtime.packages.manifest import MANIFEST
from sdexport.runtime.packages.unfinished import unfinished_manifest
from sdexport.unfinished_exports import PACKAGE, REPLACED, delete_hidden, hidden_folder, sweep


def check_destination(destination: Path, *, force: bool) -> None:
    """Raises: FileExistsError: something is there, and it must not be replaced.

    PermissionError: a package is there that this user cannot move.
    """
    if not destination.exists():
        return
    if not force:
        raise FileExistsError(f"{destination} exists; use --force to replace it")
    replaceable = destination.is_dir() and (
        (destination / MANIFEST).is_file() or not any(destination.iterdir())
    )
    if not replaceable:
        raise FileExistsError(f"{destination} exists and is not a package; it is not replaced")
    if not os.access(destination, os.W_OK):
        raise PermissionError(f"{destination} is read-only; it is not replaced")


@contextmanager
def package_folder(destination: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write a package to, which becomes `destination` when the block ends.

    The folder is hidden, and marked as unfinished until it is moved; see
    sdexport.runtime.packages.unfinished. It is on disk before that. After an error it is deleted;
    what a killed process leaves is deleted by the next call for the same destination. A package
    that is replaced stays where it is until the new one takes its place; see replace_folder.

    Raises: FileExistsError, PermissionError: see check_destination; or another process created the
      destination in the meantime.
    """
    destination = Path(os.path.realpath(destination))
    destination.parent.mkdir(parents=True, exist_ok=True)
    sweep(destination)
    check_destination(destination, force=force)
    with hidden_folder(destination) as hidden:
        folder = hidden / PACKAGE
        with UNDO.during(partial(delete_hidden, hidden)):  # not while it is moved
            folder.mkdir()
            (folder / MANIFEST).write_bytes(unfinished_manifest())
            yield folder
            sync_tree(folder)
        _move_into_place(folder, destination, hidden / REPLACED, force=force)
        sync(destination.parent)


def _move_into_place(folder: Path, destination: Path, replaced: Path, *, force: bool) -> None:
    if destination.exists() and force:
        check_destination(destination, force=force)  # what is there now may be another folder
        replace_folder(folder, destination, replaced)
        return
    try:
        folder.rename(destination)
    except OSError as error:
        if destination.exists():
            raise FileExistsError(
                f"{destination} was created by another process in the meantime; it is not replaced"
            ) from error
        raise
