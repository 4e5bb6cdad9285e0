"""Signals end a command in one way, also where Python loses the exception or ends by the signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

COMMAND = """
import signal, time, weakref
import sdexport.runtime.packages.package
from sdexport.cli import main

class Thing:
    pass

def load(*_, **__):
    signal_now = lambda *_: signal.raise_signal(NUMBER)
    thing = Thing()
    WHERE
    for _ in range(100):
        time.sleep(0.1)

def fail(then):
    try:
        then()
    finally:
        raise ValueError

signal.signal(signal.SIGINT, signal.default_int_handler)
sdexport.Package.load = load
main(['inspect', 'package'])
"""
WHERE = {
    "in a function": "signal_now()",
    "in exec of a string": "exec('signal_now()', {'signal_now': signal_now})",
    "at a weak reference's end": "reference = weakref.ref(thing, signal_now); del thing",
    "before a finally that fails": "fail(signal_now)",
}


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("where", WHERE)
def test_signal_ends_a_command(tmp_path: Path, where: str, name: str, status: int) -> None:
    code = COMMAND.replace("NUMBER", f"signal.{name}").replace("WHERE", WHERE[where])
    (tmp_path / "interrupted.py").write_text(code)
    command = [sys.executable, "-m", "interrupted"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (status, "", "")


COMMAND_LINE = """
import signal
from sdexport.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_generating_leaves_no_half_written_file(
    package: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Field case N12: Ctrl-C ends with exit status 130."""
    previews, out = tmp_path / "previews", tmp_path / "a.png"
    arguments = ["generate", package, "a star", "-o", out, "--steps", "900"]
    arguments += ["--previews", previews, "--preview-with", "linear"]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND_LINE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (previews / "step-003.png").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (128 + number, "", "")
    assert [file.name for file in tmp_path.iterdir()] == ["previews"]
    for file in previews.iterdir():
        with Image.open(file) as image:
            image.load()


def test_signal_while_a_package_is_copied_leaves_nothing(tmp_path: Path) -> None:
    code = """
import shutil, signal
from pathlib import Path
from sdexport.cli import main

def copytree(source, destination, **_):
    (destination / 'sdexport.json').write_text('{}')
    signal.raise_signal(signal.SIGINT)

shutil.copytree = copytree
signal.signal(signal.SIGINT, signal.default_int_handler)
main(['demo', 'demo'])
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
    assert list((tmp_path / "demo").iterdir()) == []
