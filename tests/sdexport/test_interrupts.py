"""Signals end a command in one way, also where Python loses the exception or ends by the signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import signal, time, weakref
import sdexport.runtime
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


@pytest.mark.parametrize(
    ("name", "status", "said"), [("SIGINT", 1, "Aborted!"), ("SIGTERM", 128 + 15, "")]
)
@pytest.mark.parametrize("where", WHERE)
def test_signal_ends_a_command(
    tmp_path: Path, where: str, name: str, status: int, said: str
) -> None:
    code = COMMAND.replace("NUMBER", f"signal.{name}").replace("WHERE", WHERE[where])
    (tmp_path / "interrupted.py").write_text(code)
    command = [sys.executable, "-m", "interrupted"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (status, "", said)
