"""Worker processes: responses, events, errors, and how they end."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sdexport.engines.errors import WorkerError
from sdexport.engines.process_memory import peak_mb, reset_peak, timed
from sdexport.engines.worker_process import Worker, run_in_worker

SCRIPT = """
import os, sys, time
from sdexport.engines.worker_process import Channel

channel = Channel()

def fail():
    raise ValueError("two\\nlines")

def die():
    print("the last words", file=sys.stderr)
    os._exit(3)

def shout():
    print("a library talks on stdout")
    os.system("echo so does a child")
    return "heard"

def count(to):
    for number in range(to):
        channel.report("number", value=number)
    return "counted"

channel.serve({"echo": lambda **values: values, "fail": fail, "die": die, "shout": shout,
               "count": count, "pid": os.getpid, "sleep": lambda: time.sleep(60)})
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return [sys.executable, "-c", f"import runpy; runpy.run_path({str(script)!r})"]


def test_worker_responds_and_goes_on_after_an_error(command: list[str]) -> None:
    with Worker(command) as worker:
        assert worker.request("echo", text="größer", n=[1, None]) == {
            "text": "größer",
            "n": [1, None],
        }
        with pytest.raises(WorkerError, match=r"^ValueError: two lines$"):
            worker.request("fail")
        with pytest.raises(WorkerError, match=r"KeyError: .no such thing"):
            worker.request("no such thing")
        assert worker.request("shout") == "heard"


def test_worker_that_died_says_its_last_words(command: list[str]) -> None:
    with Worker(command) as worker:
        for _ in range(2):
            with pytest.raises(
                WorkerError, match=r"^die: .* died \(exit status 3\): the last words$"
            ):
                worker.request("die")
    worker.close()


def test_worker_that_is_stuck_is_ended(command: list[str]) -> None:
    with (
        Worker(command, patience=1.5) as worker,
        pytest.raises(
            WorkerError, match=r"^sleep: the worker did not respond within 1\.5 seconds$"
        ),
    ):
        worker.request("sleep")


def test_worker_reports_events_before_its_response(command: list[str]) -> None:
    events: list[Any] = []
    with Worker(command, on_event=events.append) as worker:
        assert worker.request("count", to=3) == "counted"
        assert events == [{"event": "number", "value": n} for n in range(3)]
        assert worker.request("echo", to=1) == {"to": 1}


def test_worker_is_killed_when_its_caller_is_interrupted(command: list[str]) -> None:
    def interrupt(event: Mapping[str, Any]) -> None:
        time.sleep(0.2)  # until the other events are in the pipe, where they must stay
        raise KeyboardInterrupt

    with Worker(command, on_event=interrupt) as worker:
        with pytest.raises(KeyboardInterrupt):
            worker.request("count", to=3)
        with pytest.raises(WorkerError, match=r"echo: the worker died \(killed"):
            worker.request("echo")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_worker_ignores_ctrl_c(command: list[str]) -> None:
    with Worker(command) as worker:
        os.kill(worker.request("pid"), signal.SIGINT)
        assert worker.request("echo", still="there") == {"still": "there"}


def test_worker_ends_with_its_parent(command: list[str]) -> None:
    """stdin of a worker ends when its parent dies; a request is under way."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(b'{"do": "sleep"}\n')
    process.stdin.close()
    assert process.wait(timeout=30) == 1


def test_worker_that_dies_within_a_line() -> None:
    program = "import sys; sys.stdin.readline(); print('{\"ok', end=''); sys.exit('no more')"
    with (
        Worker([sys.executable, "-c", program]) as worker,
        pytest.raises(WorkerError, match=r"echo: the worker died .*no more"),
    ):
        worker.request("echo")


def test_run_in_worker_reports_a_module_that_is_not_there() -> None:
    with pytest.raises(WorkerError, match=r"work: the worker died .*named sdexport\.none"):
        run_in_worker("sdexport.none", "work", {})


def test_timed_measures_the_peak_of_the_call_alone() -> None:
    size = 64 << 20
    before = peak_mb()
    if before is None:
        pytest.skip("peak memory is read from Linux's /proc")

    def use_memory() -> None:
        with mmap.mmap(-1, size) as memory:  # a free of the allocator may keep it
            for page in range(0, size, mmap.PAGESIZE):
                memory[page] = 1

    _, small = timed(lambda: None)
    _, large = timed(use_memory)
    _, again = timed(lambda: None)
    assert large["peak_mb"] - small["peak_mb"] > 0.9 * size / 1e6
    assert again["peak_mb"] < large["peak_mb"] - 0.5 * size / 1e6
    reset_peak()
