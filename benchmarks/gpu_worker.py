"""The process of one task of `benchmarks.gpu`; see gpu_process.py.

It imports PyTorch and diffusers, then waits for the request, so that the next task's imports go on
while the GPU is busy with another one. It ends when the program that started it does.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.reports import save

Report = Callable[[Mapping[str, Any]], None]
"""Adds values to the task's result, and writes it."""
Work = Callable[[str, Mapping[str, Any], Report], None]
"""Runs a task, by its name and the settings."""
ROOT = str(Path(__file__).resolve().parents[1]) + os.sep
"""Left out of paths in reports."""
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def serve(work: Work, *, before: Callable[[], object] = lambda: None) -> None:
    """Run the task of the one request on stdin.

    Args:
      before: imports what tasks need, before the request is there.
    """
    end_with_parent()
    before()
    line = sys.stdin.readline()
    if not line.strip():
        return  # there was nothing more to do
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    request = json.loads(line)
    path, result = Path(request["result"]), {}

    def report(values: Mapping[str, Any]) -> None:
        result.update(values)
        save(result, path)

    try:
        work(request["task"], request["settings"], report)
    except Exception as error:  # noqa: BLE001  the report includes errors
        report(failure(error))
    report({"done": True})
    sys.stdout.flush()
    # Without the destructors of CUDA libraries, some of which hang or crash after an error.
    os._exit(0)


def failure(error: BaseException) -> dict[str, Any]:
    """An error as the entries `error` and `trace` of a result."""
    trace = "".join(traceback.format_exception(error)).replace(ROOT, "")
    text = " ".join(str(error).split())[:600]
    return {"error": f"{type(error).__name__}: {text}", "trace": trace.strip().splitlines()[-8:]}


def end_with_parent() -> None:
    """On Linux: end when the parent does, and be the first that the system ends for memory."""
    with suppress(OSError, AttributeError):
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    from benchmarks import gpu_work

    def before() -> None:
        for name in gpu_work.LIBRARIES:
            with suppress(ImportError):  # the tasks that need it report that
                importlib.import_module(name)

    serve(gpu_work.run, before=before)


if __name__ == "__main__":
    main()
