"""Ctrl-C and SIGTERM end a command within a second, whatever it does.

Measured on two cores: 0.02 to 0.9 s with six processes waiting, 0.03 to 1.1 s with thirteen.
`python -m benchmarks.interruption` writes the figures of docs/security.md.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdexport.demo_model import MODEL_DIR
from tests.faults.interrupted_commands import PROGRAM, Ended, interrupt, wait_until
from tests.faults.interruptions import INTERRUPTIONS, announced, interrupt_on_terminal
from tests.faults.slow_graphs import slow_down

SECONDS = 3.0
"""From the signal to the end on a machine that does other things. Promised is one second."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
QUICK = [("a password is typed", signal.SIGTERM), ("generate --prompts", signal.SIGINT)]
"""Interruptions that are tested with each change."""


def assert_ended(ended: Ended, number: signal.Signals) -> None:
    assert ended.status == 128 + number, ended
    assert ended.stdout == ""
    assert "error" not in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
    assert ended.seconds < SECONDS


CASES = [
    ("generate", "loop", "onnxruntime", signal.SIGINT),  # cancelled between two nodes
    ("generate", "loop", "openvino", signal.SIGTERM),  # computes on: the process is ended
]
OTHERS = [
    (command, how, backend, number)
    for command in ("generate", "verify")
    for how in ("loop", "node", "fold")
    for backend in ("onnxruntime", "openvino")
    for number in SIGNALS
    if (command, how, backend, number) not in CASES
]


@pytest.mark.parametrize(
    ("command", "how", "backend", "number"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_signal_while_an_engine_computes(
    package: Path, tmp_path: Path, command: str, how: str, backend: str, number: signal.Signals
) -> None:
    copy = shutil.copytree(package, tmp_path / "slow")
    slow_down(copy, how)
    before = sorted(copy.rglob("*"))
    mark, out = tmp_path / "mark", tmp_path / "out"
    out.mkdir()
    arguments: list[object] = [command, copy, "--backend", backend]
    if command == "generate":
        arguments += ["a star", "--steps", 3, "-o", out / "a.png", "-n", 2]
    # engines fold constants when they open a graph
    where = {
        "fold": ("sdexport.runtime.component_sessions", "open_component", "'unet' in arguments"),
    }.get(how, ("sdexport.engines.session", "check_feeds", "arguments[0] == 'unet'"))
    code = announced(mark, *where)

    def wait(process: subprocess.Popen[str]) -> None:
        wait_until(mark.exists)(process)
        time.sleep(0.5)

    assert_ended(interrupt(arguments, number, wait, program=code), number)
    assert list(out.iterdir()) == []
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_signal_while_a_worker_builds(
    package_copy: Path, tmp_path: Path, number: signal.Signals
) -> None:
    engines = tmp_path / "engines"
    wait = wait_until(lambda: any(engines.rglob(".unet.*.part")))
    arguments = ["build", package_copy, "--backend", "onnxruntime", "--component", "unet"]
    ended = interrupt([*arguments, "--engine-dir", engines], number, wait)
    assert_ended(ended, number)
    assert [path for path in engines.rglob("*") if path.is_file() or ".part" in path.name] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("after", [0.1, 0.7, 1.5])
def test_signal_while_pytorch_traces(tmp_path: Path, number: signal.Signals, after: float) -> None:
    mark, out = tmp_path / "mark", tmp_path / "out"
    out.mkdir()

    def wait(process: subprocess.Popen[str]) -> None:
        wait_until(mark.exists)(process)
        time.sleep(after)

    code = announced(mark, "sdexport.exporter", "trace", "'unet' in str(arguments)")
    ended = interrupt(["export", MODEL_DIR, out / "package"], number, wait, program=code)
    assert_ended(ended, number)
    assert list(out.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("what", "number"),
    [
        pytest.param(what, number, marks=() if (what, number) in QUICK else pytest.mark.slow)
        for what in INTERRUPTIONS
        for number in SIGNALS
    ],
)
def test_signal_leaves_the_terminal_and_folders_as_they_were(
    tmp_path: Path, what: str, number: signal.Signals
) -> None:
    ended = interrupt_on_terminal(what, number, tmp_path)
    assert ended.problems(number) == []
    assert ended.seconds < SECONDS


def test_second_signal_ends_a_command_at_once(tmp_path: Path) -> None:
    """The first is caught, as libraries do; SIGINT twice is Ctrl-C by an impatient user."""
    mark = tmp_path / "mark"
    code = f"""
import pathlib, time
import sdexport.runtime.packages.package

def load(*_, **__):
    while True:
        try:
            pathlib.Path({str(mark)!r}).touch()
            time.sleep(60)
        except BaseException:
            pass

sdexport.Package.load = load
"""
    ended = interrupt(
        ["inspect", "x"], signal.SIGINT, wait_until(mark.exists), program=code + PROGRAM, times=2
    )
    assert_ended(ended, signal.SIGINT)
