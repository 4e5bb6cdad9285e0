"""Files that belong to another user, which only root can make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOBODY = 65534
"""User and group that own nothing, on every Linux system."""


def given_away(path: Path) -> None:
    """Let a file or folder belong to another user; skips the test where that is not allowed."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    os.chown(path, NOBODY, NOBODY)
