"""A GPU in software for WebGPU: SwiftShader, the Vulkan driver that Chromium brings along.

    python -m tests.helpers.software_gpu    fetch it with apt-get, if it is not here

Nothing is installed: Debian's package is unpacked into the folder of the Python environment.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

UNPACKED = Path(sys.prefix) / "software-gpu"
FOLDERS = (
    UNPACKED,
    *map(
        Path,
        (
            "/usr/lib/chromium",
            "/usr/lib/chromium-browser",
            "/opt/google/chrome",
            "/opt/microsoft/msedge",
        ),
    ),
)
DRIVER, LIBRARY, LOADER = "vk_swiftshader_icd.json", "libvk_swiftshader.so", "libvulkan.so.1"
PACKAGE = "chromium-common"
"""Debian's package with all three; 30 MB."""
NO_GPU = "no software GPU"
"""How the reason of a skipped test begins."""
SETTINGS = ("VK_ICD_FILENAMES", "VK_DRIVER_FILES")
ALLOWED = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
SECONDS = 90
"""For a command of apt."""


def folder() -> Path | None:
    """The folder that has the driver and Vulkan's loader."""
    for each in FOLDERS:
        if all((each / name).is_file() for name in (DRIVER, LIBRARY, LOADER)):
            return each
    return None


def missing() -> str:
    """Why WebGPU cannot run on a software GPU here; "" if it can."""
    if sys.platform != "linux":
        return "it is for Linux"
    if find_spec("onnxruntime_ep_webgpu") is None:
        return "onnxruntime-ep-webgpu is not installed"
    if folder() is None:
        return "run: python -m tests.helpers.software_gpu"
    return ""


def use(patch: pytest.MonkeyPatch) -> None:
    """Make this process use it, before WebGPU starts; skips the test if there is none."""
    reason = missing()
    if reason:
        pytest.skip(f"{NO_GPU}: {reason}")
    found = folder()
    assert found is not None
    load_vulkan(found)
    for name in SETTINGS:
        patch.setenv(name, str(found / DRIVER))
    patch.setenv(ALLOWED, "1")


@cache
def load_vulkan(found: Path) -> None:
    """Load the loader, which libraries then find by its name."""
    ctypes.CDLL(str(found / LOADER), mode=ctypes.RTLD_GLOBAL)


def fetch() -> str:
    """Unpack the package; returns why that failed, or ""."""
    if sys.platform != "linux" or not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        return "this machine has no apt-get"
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if not run(["apt-get", "download", PACKAGE], work):
            run(["apt-get", "update"], work)  # needs root
            if not run(["apt-get", "download", PACKAGE], work):
                return f"apt-get cannot download {PACKAGE}"
        (archive,) = work.glob("*.deb")
        if not run(["dpkg-deb", "--extract", str(archive), "."], work):
            return f"{archive.name} cannot be unpacked"
        found = [next(work.rglob(name), None) for name in (DRIVER, LIBRARY, LOADER)]
        if None in found:
            return f"{archive.name} has no SwiftShader"
        shutil.rmtree(UNPACKED, ignore_errors=True)
        partial = UNPACKED.with_name(f"{UNPACKED.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for each in filter(None, found):
            shutil.copy(each, partial)
        partial.rename(UNPACKED)
    return ""


def run(command: list[str], work: Path) -> bool:
    """Whether a command succeeded."""
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def main() -> int:
    """Returns: the exit status."""
    failure = "" if folder() else fetch()
    reason = failure or missing()
    print(f"{NO_GPU}: {reason}; tests of WebGPU are skipped" if reason else folder())  # noqa: T201
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
