"""A Python program in which a folder is a disk of its own, of a few hundred kilobytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
_MOUNT = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && shift 2 && exec "$@"'


def run_on_small_disk(
    program: str, disk: Path, *arguments: object, size: str = "256k"
) -> subprocess.CompletedProcess[str]:
    """Run a program that sees an empty disk at `disk`; it is gone afterwards.

    Args:
      program: Python code. disk: a folder. size: as mount takes it.
    Skips the test where file systems cannot be mounted.
    """
    if sys.platform != "linux":
        pytest.skip("a small disk needs Linux")
    mount = [*_UNSHARE, "sh", "-c", _MOUNT, "sh", size, str(disk)]
    try:
        allowed = subprocess.run([*mount, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted: {error}")
    if allowed.returncode:
        pytest.skip(f"no small disk can be mounted: {allowed.stderr.strip()}")
    command = [*mount, sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
