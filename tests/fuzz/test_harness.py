"""The harness sees what it is there to see: each assertion is broken once."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.engines.errors import InvalidArgumentError, OutOfMemoryError, PackageError
from tests.fuzz.harness import Checker, Target
from tests.tolerances import FUZZ_BYTES, FUZZ_SECONDS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="knows the files that Python reads on Linux"
)
WORD = "the folder"


def raises(error: BaseException) -> Callable[[Path], object]:
    def run(folder: Path) -> None:
        raise error

    return run


def logs(message: str) -> Callable[[Path], object]:
    return lambda folder: logging.getLogger("sdexport.anything").warning("%s", message)


def computes(folder: Path) -> None:
    end = time.process_time() + FUZZ_SECONDS * 1.1
    while time.process_time() < end:
        pass


def swallows(folder: Path) -> None:
    """What is forbidden is seen even if its error is caught."""
    try:
        Path("/etc/passwd").read_bytes()
    except BaseException:  # noqa: BLE001
        raise PackageError(WORD) from None


def finding_of(run: Callable[[Path], object], folder: Path) -> str:
    target = Target("it", lambda at, data: run(at), names=(WORD,), errors=(PackageError, OSError))
    finding = Checker(target, folder).check(b"x")
    return "" if finding is None else str(finding)


@pytest.mark.parametrize(
    "run",
    [
        lambda folder: None,
        lambda folder: (folder / "file").read_bytes(),
        lambda folder: list(folder.iterdir()),
        lambda folder: bytearray(FUZZ_BYTES // 2),
        raises(PackageError(f"{WORD} is damaged: 'naïve' 日本")),
        raises(FileNotFoundError(2, "No such file", WORD)),
        logs("one line"),
    ],
)
def test_what_is_right_is_not_reported(run: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert finding_of(run, tmp_path) == ""


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (raises(KeyError(WORD)), "undocumented KeyError"),
        (raises(InvalidArgumentError(WORD)), "undocumented InvalidArgumentError"),
        (raises(MemoryError(WORD)), "undocumented MemoryError"),
        (raises(OutOfMemoryError(WORD)), "undocumented OutOfMemoryError"),
        (raises(RecursionError(WORD)), "undocumented RecursionError"),
        (raises(PackageError("is damaged")), "message without a name"),
        (raises(PackageError("")), "unfit message"),
        (raises(PackageError(WORD * 1000)), "unfit message"),
        (raises(OSError(f"{WORD}\nline")), "unfit message"),
        (raises(OSError(f"{WORD}\x1b[2J")), "unfit message"),
        (raises(OSError(f"{WORD}\u202e")), "unfit message"),
        (logs("two\nlines"), "unfit log message"),
        (logs("\x9b2J"), "unfit log message"),
        (lambda folder: warnings.warn("overflow", RuntimeWarning, stacklevel=1), "RuntimeWarning"),
        (lambda folder: Path("/etc/passwd").read_bytes(), "outside of the folder"),
        (lambda folder: (folder / "out").read_bytes(), "outside of the folder"),
        (lambda folder: (folder / ".." / "other").open("rb"), "outside of the folder"),
        (lambda folder: os.open("/etc/passwd", os.O_RDONLY), "outside of the folder"),
        (lambda folder: (folder / "new").write_bytes(b""), "for writing"),
        (lambda folder: (folder / "file").unlink(), "os.remove"),
        (lambda folder: (folder / "file").rename(folder / "other"), "os.rename"),
        (lambda folder: (folder / "new").mkdir(), "os.mkdir"),
        (lambda folder: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (lambda folder: os.system("true"), "os.system"),
        (lambda folder: socket.create_connection(("localhost", 1)), "socket."),
        (lambda folder: socket.getaddrinfo("localhost", 80), "socket."),
        (swallows, "outside of the folder"),
        (computes, "slow"),
        (lambda folder: bytearray(FUZZ_BYTES + 2**20), "memory"),
    ],
)
def test_what_is_wrong_is_reported(
    run: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "out").symlink_to("/etc/passwd")
    assert words in finding_of(run, tmp_path)
