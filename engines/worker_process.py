"""Worker processes: requests on stdin, events and responses on stdout, one JSON object a line.

    request   {"do": NAME, ...arguments}
    event     {"event": NAME, ...values}, any number of them
    response  {"ok": RESULT} or {"error": "MESSAGE"}

Requests are handled in turn. Whatever else a worker prints goes to stderr. A worker ignores
Ctrl-C, as its parent decides when it ends; it also ends as soon as its parent is gone.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sdexport.engines.closing import ClosesOnExit
from sdexport.engines.errors import WorkerError
from sdexport.engines.exit_actions import UNDO
from sdexport.engines.messages import one_line

Handlers = Mapping[str, Callable[..., Any]]
"""Functions by the name of their request; arguments and results are JSON values."""
OnEvent = Callable[[Mapping[str, Any]], object]
PATIENCE = 1800.0
"""Default time limit of a response, in seconds."""
_LONGEST_ERROR = 500
_SECONDS_TO_END = 20
_SECONDS_TO_DIE = 0.2
"""After a kill, before the files are deleted that it may write."""


class Worker(ClosesOnExit):
    """A worker process; a context manager that ends it.

    Args:
      command: program and arguments.
      environment: variables in addition to those of this process.
      patience: seconds that one response may take; None sets no limit.
      on_event: called with each event that the worker reports.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        *,
        patience: float | None = PATIENCE,
        on_event: OnEvent = lambda event: None,
    ) -> None:
        self._patience, self._on_event = patience, on_event
        self._killed = False  # output from before the kill is ignored
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
        self._unregister = UNDO.add(self._kill_and_wait)

    def request(self, do: str, **arguments: Any) -> Any:
        """Send a request and wait for its response.

        Args:
          do: name of the request. arguments: JSON values.
        Raises: WorkerError: the worker reports an error; or it died or took too long, and is gone.
          If `on_event` raises or the wait is interrupted, the worker is killed.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        overdue = threading.Event()
        timer = threading.Timer(self._patience or 0, self._give_up, [overdue])
        timer.daemon = True
        if self._patience is not None:
            timer.start()
        try:
            with suppress(OSError):  # it died before, and sends no response
                process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
                process.stdin.flush()
            response = None if self._killed else self._response()
        except BaseException:
            self.kill()
            raise
        finally:
            timer.cancel()
        if response is None:
            raise WorkerError(f"{do}: {self._why_gone(overdue.is_set())}")
        if "error" in response:
            raise WorkerError(response["error"])
        return response["ok"]

    def _response(self) -> dict[str, Any] | None:
        """The response after any events; None if the output ends before, perhaps within a line."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:
                return None
            if "event" not in message:
                return message
            self._on_event(message)
        return None

    def _give_up(self, overdue: threading.Event) -> None:
        overdue.set()
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._killed = True
        self._process.kill()

    def _kill_and_wait(self) -> None:
        self.kill()
        self._process.wait(timeout=_SECONDS_TO_DIE)

    def close(self) -> None:
        """End the process; closing twice is allowed."""
        if self._errors.closed:
            return
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._errors.close()
        self._unregister()

    def _why_gone(self, overdue: bool) -> str:
        self._process.kill()
        status = _in_words(self._process.wait())
        if overdue:
            return f"the worker did not respond within {self._patience:g} seconds"
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace").split("\n")
        lines = [line.strip() for line in printed if line.strip()]
        return f"the worker died ({status}): {lines[-1] if lines else 'nothing on stderr'}"


def run_in_worker(
    module: str,
    do: str,
    arguments: Mapping[str, Any],
    *,
    on_event: OnEvent = lambda event: None,
) -> Any:
    """Send one request to a new process that runs a module of this package, then end it.

    Args:
      module: full name; run as a program, it must serve `do`.
      arguments: JSON values. on_event: called with each event that the worker reports.
    Raises: see Worker.request.
    """
    with module_worker(module, patience=None, on_event=on_event) as worker:
        try:
            return worker.request(do, **arguments)
        finally:
            worker.kill()


def module_worker(
    module: str,
    *,
    patience: float | None = PATIENCE,
    on_event: OnEvent = lambda event: None,
) -> Worker:
    """A worker that runs a module of this package, whatever modules the current folder holds.

    Args:
      module: full name. patience, on_event: see Worker.
    """
    command, environment = module_command(module)
    return Worker(command, environment, patience=patience, on_event=on_event)


def module_command(module: str) -> tuple[list[str], dict[str, str]]:
    """How to run a module of this package, whatever modules the current folder holds.

    Args:
      module: full name.
    Returns: the command, and variables in addition to those of this process.
    """
    return [sys.executable, "-P", "-m", module], _import_path()


def _import_path() -> dict[str, str]:
    """Variables with which another Python process imports this package from the same place."""
    package = sys.modules[__name__.partition(".")[0]]
    root = str(Path(str(package.__file__)).resolve().parents[1])
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _in_words(status: int) -> str:
    if status in (-9, 137):
        return "killed, perhaps for memory"
    return f"signal {-status}" if status < 0 else f"exit status {status}"


class Channel:
    """The worker's end of the connection; it redirects what else is printed to stderr."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._lock = threading.Lock()
        self._output = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._busy = False

    def report(self, event: str, **values: Any) -> None:
        """Send an event to the parent; to be called while a request is handled."""
        self._send({"event": event, **values})

    def serve(self, handlers: Handlers) -> None:
        """Handle requests until stdin ends. If it ends during a request, so does the process."""
        requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=self._read, args=[requests], daemon=True)
        reader.start()
        while (line := requests.get()) is not None:
            response = _handled(handlers, line)
            self._busy = False
            self._send(response)
        reader.join()

    def _read(self, requests: queue.SimpleQueue[str | None]) -> None:
        for line in sys.stdin:
            self._busy = True
            requests.put(line)
        if self._busy:
            os._exit(1)
        requests.put(None)

    def _send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._output.write(json.dumps(message) + "\n")
            self._output.flush()


def serve(handlers: Handlers) -> None:
    """Handle requests until stdin ends; for workers that report no events."""
    Channel().serve(handlers)


def _handled(handlers: Handlers, line: str) -> dict[str, Any]:
    request = json.loads(line)
    try:
        return {"ok": handlers[request.pop("do")](**request)}
    except Exception as error:  # noqa: BLE001  the parent reports it, whatever it is
        return {"error": f"{type(error).__name__}: {one_line(error)}"[:_LONGEST_ERROR]}
