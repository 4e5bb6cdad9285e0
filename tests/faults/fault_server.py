"""A process that runs one scenario again and again, each time with another call that fails.

It imports and computes what the scenario needs, once, and forks for each run. As a program it is
told the scenario on its command line, and reads one JSON object a line: the folder, the number and
the kind of the fault. It answers with the child's end and its error.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdexport.engines.closing import ClosesOnExit

SOURCE = Path(__file__).with_name("shim.c")
KINDS = ("ENOSPC", "KILL", "EIO", "SHORT", "TORN")
OF_DATA = ("SHORT", "TORN")
"""Kinds of faults that only calls which write data have."""
WRITES = ("write", "pwrite", "pwrite64", "writev", "sendfile", "sendfile64", "copy_file_range")
_FAILED, _BUG = 1, 3
_SECONDS = 120
"""After which a run counts as one that hangs."""
_LONGEST = 4000
"""Bytes of an error that are passed on."""


def compiled_shim(folder: Path) -> Path:
    """The library that injects faults; skips the test where it cannot be built."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("fault injection needs Linux and gcc")
    library = folder / "shim.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"]
    subprocess.run(list(map(str, command)), check=True)
    return library


@dataclass(frozen=True)
class Outcome:
    """How a run ended. calls: the names of those that counted.

    error: empty if it succeeded. killed: by the fault. bug: the error is none of ours, or the run
      crashed or hung.
    """

    calls: tuple[str, ...]
    error: str
    killed: bool
    bug: bool

    def __str__(self) -> str:
        return "killed" if self.killed else self.error or "success"


class FaultServer(ClosesOnExit):
    """Runs a scenario of tests/faults/scenarios.py with faults; a context manager."""

    def __init__(self, scenario: str, shim: Path, log: Path) -> None:
        self._log = log
        threads = {"OMP_NUM_THREADS": "1", "FAULT_LOG": str(log), "FAULT_NUMBER": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fault_server", scenario],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads, "LD_PRELOAD": str(shim)},
        )

    def run(self, folder: Path, number: int = 0, kind: str = "") -> Outcome:
        """Run the scenario in a folder; with a number, that call fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._log.unlink(missing_ok=True)
        request = {"folder": str(folder), "number": number, "kind": kind}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the server ended with status {self._process.wait()}"
        answer = json.loads(line)
        calls = self._log.read_text().split() if self._log.exists() else []
        return Outcome(tuple(calls), **answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def sample(calls: tuple[str, ...], each: int) -> list[int]:
    """Numbers of calls, from 1 on: about `each` of every name, with the first and the last."""
    chosen = []
    for name in Counter(calls):
        places = [number for number, call in enumerate(calls, 1) if call == name]
        step = max((len(places) - 1) / max(each - 1, 1), 1)
        chosen += [places[round(i * step)] for i in range(each) if round(i * step) < len(places)]
    return sorted(set(chosen))


def _serve(scenario: str) -> None:
    from tests.faults.scenarios import SCENARIOS

    act = SCENARIOS[scenario].start()
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ["FAULT_FOLDER"] = request["folder"]
            os.environ["FAULT_NUMBER"] = str(request["number"])
            os.environ["FAULT_KIND"] = request["kind"]
            signal.alarm(_SECONDS)
            status, error = _result(act, Path(request["folder"]))
            os.environ["FAULT_FOLDER"] = ""
            os.write(writer, error.encode(errors="replace")[:_LONGEST])
            os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            error = stream.read().decode(errors="replace")  # the end of it may be cut
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        killed = status == -signal.SIGKILL
        bug = not killed and status not in (0, _FAILED)
        error = error or (f"signal {-status}" if bug else "")
        print(json.dumps({"error": error, "killed": killed, "bug": bug}), flush=True)  # noqa: T201


def _result(act: object, folder: Path) -> tuple[int, str]:
    from sdexport.engines.errors import SDExportError

    assert callable(act)
    try:
        act(folder)
    except (OSError, SDExportError) as error:
        return _FAILED, f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001  whatever it is, the test reports it
        return _BUG, traceback.format_exc()
    return 0, ""


if __name__ == "__main__":
    _serve(sys.argv[1])
