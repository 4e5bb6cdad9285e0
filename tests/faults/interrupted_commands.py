"""Commands in processes of their own that get a signal, and the time until they end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PROGRAM = """
import signal
from sdexport.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
main()
"""
_PATIENCE = 120.0


@dataclass(frozen=True)
class Ended:
    """How a command ended. seconds: from the signal to its end."""

    seconds: float
    status: int
    stdout: str
    stderr: str


def interrupt(
    arguments: Sequence[object],
    number: signal.Signals,
    when: Callable[[subprocess.Popen[str]], object],
    *,
    program: str = PROGRAM,
    times: int = 1,
) -> Ended:
    """Run a command of sdexport and send it a signal.

    Args:
      when: waits for the moment. program: Python code. times: signals to send, 0.1 s apart.
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            when(process)
            assert process.poll() is None, process.communicate()
            started = time.perf_counter()
            for _ in range(times):
                process.send_signal(number)
                time.sleep(0.1 if times > 1 else 0)
            out, err = process.communicate(timeout=_PATIENCE)
            seconds = time.perf_counter() - started
        finally:
            process.kill()
    return Ended(seconds, process.returncode, out, err)


def wait_until(reached: Callable[[], bool]) -> Callable[[subprocess.Popen[str]], None]:
    """A function that waits until a condition holds, or the process has ended."""

    def wait(process: subprocess.Popen[str]) -> None:
        until = time.monotonic() + _PATIENCE
        while not reached() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)

    return wait
