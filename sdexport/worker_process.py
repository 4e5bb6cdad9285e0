"""Worker processes that are asked in turn: one JSON object a line on stdin, one on stdout.

A request is {"do": NAME, ...arguments}; the answer is {"ok": ...} or {"error": "..."}. What else a
worker prints goes to stderr. Nothing but the standard library is imported here, so that a worker
may live in an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from sdexport.engines.errors import WorkerError
from sdexport.engines.messages import one_line

Handlers = Mapping[str, Callable[..., Any]]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PATIENCE = 1800.0
"""Seconds that one answer may take before its worker counts as stuck."""


class Worker:
    """A worker process; a context manager.

    Args:
      command: what to start.
      environment: variables on top of this process's own.
      patience: seconds that one answer may take.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._patience = patience
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the worker answers.

        Raises: WorkerError: it cannot do it; or it died or took too long, and is gone.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        overdue = threading.Timer(self._patience, process.kill)
        overdue.start()
        try:
            process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it died before
            line = ""
        finally:
            overdue.cancel()
        if not line:
            raise WorkerError(f"{do}: {self._end()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["ok"]

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """End the process; closing twice is allowed."""
        if self._errors.closed:
            return
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._errors.close()

    def _end(self) -> str:
        """Why there was no answer."""
        self._process.kill()
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "nothing on stderr")
        return f"the worker ended with status {status}: {last}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve(handlers: Handlers) -> None:
    """Answer requests until stdin ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # libraries print to stdout
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"ok": handlers[request.pop("do")](**request)}
            except Exception as error:  # noqa: BLE001  the other side reports it
                message = one_line(error)
                answer = {"error": f"{type(error).__name__}: {message}"[:500]}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float | None]]:
    """What a call gives, its seconds, and the peak memory of the process while it ran."""
    reset_peak()
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    return result, {"seconds": seconds, "peak_mb": peak_mb()}


def reset_peak() -> None:
    """Let the peak begin again from what is resident now (Linux; elsewhere it does nothing)."""
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


def peak_mb() -> float | None:
    """Most MB of this process that were resident since `reset_peak`; None if not on Linux."""
    return _status("VmHWM")


def resident_mb() -> dict[str, float | None]:
    """What is resident now: all of it, and the part that is no mapped file."""
    return {"resident_mb": _status("VmRSS"), "private_mb": _status("RssAnon")}


def _status(field: str) -> float | None:
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return None
