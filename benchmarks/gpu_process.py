"""One task in a process of its own, which may crash, hang or lose its GPU without harm to others.

The child is `benchmarks.gpu_worker`. It imports its libraries, reads one request, and writes the
result to a file after each stage, so that what was measured before a crash is not lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS_TO_DIE = 10.0
"""After a kill. A process that is still there waits in the driver: the GPU is of no more use."""
_LOG_LINES = 12


class TaskProcess:
    """A worker that was started, and after `begin` runs a task.

    Args:
      command: program and arguments of the worker.
      folder: the request, the result and the log of each task are written here.
      environment: variables in addition to those of this process.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.started, self.limit = "", 0.0, 0.0
        self._folder = folder
        self._log = folder / f"worker-{os.getpid()}-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # a kill reaches what it has started
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, name: str, settings: Mapping[str, Any], limit: float) -> None:
        """Run a task.

        Args:
          settings: JSON values. limit: seconds after which `finished` kills it.
        """
        self.name, self.limit, self.started = name, limit, time.monotonic()
        self.result_path = result_path(self._folder, name)
        log = self._folder / f"{name}.log"
        with suppress(OSError):  # Windows renames no open file
            self._log.replace(log)
            self._log = log
        request = {"task": name, "settings": dict(settings), "result": str(self.result_path)}
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone; `finished` says why
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()

    def finished(self) -> dict[str, Any] | None:
        """The result, or None while the task runs; a task over its limit is killed.

        Returns: what the task reported so far, its seconds, and for one that failed `error`.
        """
        seconds = time.monotonic() - self.started
        status = self._process.poll()
        if status is None and seconds <= self.limit:
            return None
        error = ""
        if status is None:
            error = f"no end after {self.limit:g} s, killed"
            if not self.kill():
                error += "; it cannot be ended, and the GPU may be of no more use until a restart"
        result = reported(self.result_path)
        done = bool(result.pop("done", False))
        if not error and (status != 0 or not done):
            error = f"the process ended: {in_words(status or 0)}"
        if error and "error" not in result:
            result["error"] = error
        if "error" in result:
            result["log"] = self.last_lines()
        self.close()
        return result | {"seconds": round(seconds, 2)}

    def last_lines(self) -> list[str]:
        """The end of what the task printed."""
        with suppress(OSError):
            text = self._log.read_bytes()[-20_000:].decode(errors="replace")
            return [line[:300] for line in text.splitlines() if line.strip()][-_LOG_LINES:]
        return []

    def kill(self) -> bool:
        """End the process and what it has started at once; False if it does not end."""
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        try:
            self._process.wait(timeout=SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End the process, and what it left running; closing twice is allowed."""
        self.kill()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        if not self.name:
            self._log.unlink(missing_ok=True)


def result_path(folder: Path, name: str) -> Path:
    """Where a task writes its result."""
    return folder / f"{name}.json"


def reported(path: Path) -> dict[str, Any]:
    """What a task has written so far."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def in_words(status: int) -> str:
    """The exit status of a process, for messages."""
    if status == -signal.SIGTERM:
        return "it was stopped (SIGTERM)"
    if status == -9:
        return "killed (SIGKILL), perhaps because the memory was used up"
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return f"exit status {status}" + ("" if status else ", without a result")
