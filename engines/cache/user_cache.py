"""The user's cache folder: where it is, and whether it can be trusted and written to.

What is in it can be computed again. Whoever reads from it checks what is read; whoever cannot use
it works without it, after one warning.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from functools import cache
from pathlib import Path

from sdexport.engines.messages import one_line

VARIABLE = "SDEXPORT_CACHE"
"""Environment variable: a folder to use instead of the usual one, or OFF."""
OFF = "off"
"""Value of the variable with which nothing is cached."""
_NAME = "sdexport"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_log = logging.getLogger(__name__)


def user_cache_path() -> Path | None:
    """The folder of sdexport's caches, whether it exists or not; None if they are turned off.

    $SDEXPORT_CACHE, or `sdexport` in the folder that the system has for caches: $XDG_CACHE_HOME or
    ~/.cache, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows.
    """
    value = os.environ.get(VARIABLE, "")
    if value.strip().lower() == OFF:
        return None
    if value:
        return Path(value).absolute()
    try:
        return _system_folder() / _NAME
    except RuntimeError:  # there is no home folder
        return None


def user_cache(subfolder: str) -> Path | None:
    """A folder within the user's cache folder; both are created, for this user only.

    Args:
      subfolder: its name, such as "openvino".
    Returns: None if the caches are turned off, or if it cannot be used: it cannot be created, is a
      link, belongs to another user, or others may write to it. That is logged once as a warning.
    """
    root = user_cache_path()
    if root is None:
        return None
    problem = ""
    for folder in (root, root / subfolder):
        problem = problem or folder_problem(folder, create=True)
    if problem:
        _warn_once(f"nothing is cached: {problem}; {VARIABLE} names another folder, or is '{OFF}'")
        return None
    return root / subfolder


def folder_problem(folder: Path, *, create: bool = False) -> str:
    """Why a folder of a cache cannot be used, in words; "" if it can.

    Args:
      create: create it first, for this user only, if it is missing.
    """
    try:
        if create:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
        status = folder.lstat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return f"{folder} cannot be used: {one_line(getattr(error, 'strerror', None) or error)}"
    if stat.S_ISLNK(status.st_mode):
        return f"{folder} is a link"
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is not a folder"
    if hasattr(os, "geteuid"):
        if status.st_uid != os.geteuid():
            return f"{folder} belongs to another user"
        if status.st_mode & _OTHERS_WRITE:
            return f"other users may write to {folder}"
    return ""


def _system_folder() -> Path:
    """Raises: RuntimeError: there is no home folder."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", "")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache"


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
