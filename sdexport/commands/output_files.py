"""Checks of the files that a command will write, before the work."""

from __future__ import annotations

import os
from pathlib import Path


def check_output_file(path: Path, *, force: bool) -> None:
    """Check that a file can be written.

    Raises: FileNotFoundError, PermissionError: there is no such folder, or it cannot be written.
      IsADirectoryError, FileExistsError: see check_overwrite.
    """
    check_folder_of(path)
    check_overwrite(path, force=force)


def check_folder_of(path: Path) -> None:
    """Raises: FileNotFoundError, PermissionError: see check_output_file."""
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{shown_path(path)}: there is no folder {shown_path(folder)}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{shown_path(path)}: the folder cannot be written")


def check_overwrite(path: Path, *, force: bool) -> None:
    """Check that nothing is overwritten by accident.

    Raises: IsADirectoryError: there is a folder of that name. FileExistsError: the file exists, and
      --force was not given; or it is no regular file, such as a device.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{shown_path(path)} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise FileExistsError(
            f"{shown_path(path)} exists and is not a regular file; choose another name"
        )
    if (path.exists() or path.is_symlink()) and not force:
        raise FileExistsError(f"{shown_path(path)} exists; use --force to overwrite it")


def shown_path(path: Path) -> str:
    """A path for a message: as it is, or its `repr` if it is very long or not printable."""
    from sdexport.engines.messages import plain  # loads NumPy

    return plain(str(path), 300)
