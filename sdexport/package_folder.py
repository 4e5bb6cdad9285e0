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


def check_destination(destination: Path, *, force: bool, mark: str = MANIFEST) -> None:
    """Check that a folder can be written.

    Args:
      mark: the file that tells a folder which may be replaced from all others.
    Raises: FileExistsError: something is there, and it must not be replaced. PermissionError: a
      package is there that this user cannot move.
    """
    if not destination.exists():
        return
    if not force:
        raise FileExistsError(f"{destination} exists; use --force to replace it")
    replaceable = destination.is_dir() and (
        (destination / mark).is_file() or not any(destination.iterdir())
    )
    if not replaceable:
        what = "a package" if mark == MANIFEST else f"a folder with {mark}"
        raise FileExistsError(f"{destination} exists and is not {what}; it is not replaced")
    if not os.access(destination, os.W_OK):
        raise PermissionError(f"{destination} is read-only; it is not replaced")


@contextmanager
def package_folder(destination: Path, *, force: bool, mark: str = MANIFEST) -> Iterator[Path]:
    """A folder to write a package to, which becomes `destination` when the block ends.

    The folder is hidden, and marked as unfinished until it is moved; see
    sdexport.runtime.packages.unfinished. It is on disk before that. After an error it is deleted;
    what a killed process leaves is deleted by the next call for the same destination. A package
    that is replaced stays where it is until the new one takes its place; see replace_folder.

    Args:
      mark: a file of the folder, which says that it is unfinished until the real one is written;
        see check_destination.
    Raises: FileExistsError, PermissionError: see check_destination; or another process created the
      destination in the meantime.
    """
    destination = Path(os.path.realpath(destination))
    destination.parent.mkdir(parents=True, exist_ok=True)
    sweep(destination)
    check_destination(destination, force=force, mark=mark)
    with hidden_folder(destination) as hidden:
        folder = hidden / PACKAGE
        with UNDO.during(partial(delete_hidden, hidden)):  # not while it is moved
            folder.mkdir()
            (folder / mark).write_bytes(unfinished_manifest())
            yield folder
            sync_tree(folder)
        _move_into_place(folder, destination, hidden / REPLACED, force=force, mark=mark)
        sync(destination.parent)


def _move_into_place(
    folder: Path, destination: Path, replaced: Path, *, force: bool, mark: str
) -> None:
    if destination.exists() and force:
        check_destination(destination, force=force, mark=mark)  # it may be another one now
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
