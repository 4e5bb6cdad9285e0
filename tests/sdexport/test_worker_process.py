"""Worker processes: what they answer, how they fail, what they leave behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sdexport.engines.errors import WorkerError
from sdexport.worker_process import Worker, peak_mb, reset_peak, timed

SCRIPT = """
import os, sys, time
from sdexport.worker_process import serve

def fail():
    raise ValueError("two\\nlines")

def die():
    print("the last words", file=sys.stderr)
    os._exit(3)

def shout():
    print("a library talks on stdout")
    os.system("echo so does a child")
    return "heard"

serve({"echo": lambda **given: given, "fail": fail, "die": die, "shout": shout,
       "sleep": lambda: time.sleep(60)})
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return [sys.executable, "-c", f"import runpy; runpy.run_path({str(script)!r})"]


def test_worker_answers_and_goes_on_after_an_error(command: list[str]) -> None:
    with Worker(command) as worker:
        assert worker.ask("echo", text="größer", n=[1, None]) == {"text": "größer", "n": [1, None]}
        with pytest.raises(WorkerError, match=r"^ValueError: two lines$"):
            worker.ask("fail")
        with pytest.raises(WorkerError, match=r"KeyError: .no such thing"):
            worker.ask("no such thing")
        assert worker.ask("shout") == "heard"


def test_worker_that_died_says_its_last_words(command: list[str]) -> None:
    with Worker(command) as worker:
        for _ in range(2):
            with pytest.raises(WorkerError, match="status 3: the last words"):
                worker.ask("die")
    worker.close()


def test_worker_that_is_stuck_is_ended(command: list[str]) -> None:
    with Worker(command, patience=1.5) as worker, pytest.raises(WorkerError, match="sleep: the"):
        worker.ask("sleep")


def test_timed_measures_the_peak_of_the_call_alone() -> None:
    size = 64 << 20
    before = peak_mb()
    if before is None:
        pytest.skip("peak memory is read from Linux's /proc")
    _, small = timed(lambda: None)
    kept, large = timed(lambda: len(b"x" * size))
    _, again = timed(lambda: None)
    assert kept == size
    assert large["peak_mb"] - small["peak_mb"] > 0.9 * size / 1e6
    assert again["peak_mb"] < large["peak_mb"] - 0.5 * size / 1e6
    reset_peak()
