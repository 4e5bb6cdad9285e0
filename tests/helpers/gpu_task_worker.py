"""A worker of the GPU benchmark whose tasks fail in every way; run as a program.

The setting `folder` is where tasks leave a line for each time they run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_worker import Report, serve

FOREVER = 1000.0


def work(name: str, settings: Mapping[str, Any], report: Report) -> None:
    with (Path(settings["folder"]) / "runs.txt").open("a", encoding="utf-8") as log:
        log.write(f"{name}\n")
    sys.stdout.write(f"{name} prints a line\n")
    sys.stdout.flush()
    report({"row": name, "pid": os.getpid()})
    if name == "segfault":
        ctypes.string_at(0)
    elif name == "hang":
        time.sleep(FOREVER)
    elif name == "hang with the interpreter locked":
        ctypes.PyDLL(None).sleep(int(FOREVER))
    elif name == "hang with a child":
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER})"])
        report({"child": child.pid})
        time.sleep(FOREVER)
    elif name == "raise":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    elif name == "no memory":
        raise MemoryError
    elif name == "killed for memory":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "exit":
        os._exit(3)
    elif name == "exit without a result":
        os._exit(0)
    elif name == "garbage":
        (Path(settings["results"]) / "garbage.json").write_text("[1, 2", encoding="utf-8")
        os._exit(0)
    elif name == "abort":
        os.abort()
    elif name.startswith("slow"):
        time.sleep(0.5)
    report({"finished": True})


if __name__ == "__main__":
    if "broken" in sys.argv:
        raise SystemExit("cannot import a library")
    serve(work)
