"""One process from its start to its images: seconds, processor time and memory.

Files that the process writes mark the time: each appears when an image is complete.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INTERVAL = 0.004
"""Seconds between two looks at the output files; memory is read every fifth time."""
FIELDS = {"peak_mb": "VmHWM", "private_mb": "RssAnon", "mapped_mb": "RssFile"}
"""Peak of what is resident in all, as the system counts it; the largest samples of private memory
and of mapped files."""


class ProcessFailedError(Exception):
    """The process failed, wrote not all its images, or took too long."""


def measured(
    command: Sequence[str | Path],
    outputs: Sequence[Path],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 900.0,
) -> dict[str, Any]:
    """Run a command that writes `outputs` in this order.

    Returns:
      images_s: seconds from the start of the process until each output was there; exit_s; cpu_s;
      memory_mb: peak_mb, private_mb, mapped_mb, until the exit; at_first_image: the same until the
      first image; others_cores: how many cores other processes used meanwhile, on average.
    Raises: ProcessFailedError: see there.
    """
    busy, started = _busy_seconds(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
        )
        try:
            found = _watched(process, outputs, started, timeout)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()]
    if process.returncode or len(found["images_s"]) < len(outputs):
        last = lines[-1] if lines else "no message"
        raise ProcessFailedError(f"exit status {process.returncode}: {last}"[:400])
    others = _busy_seconds() - busy - found["cpu_s"]
    return found | {"others_cores": round(max(others, 0.0) / found["exit_s"], 2)}


def wait_for_stores(timeout: float = 900.0) -> None:
    """Wait until no process stores what an earlier one has left to it, see runtime/store_graphs.py.

    Raises: ProcessFailedError: one takes too long.
    """
    began = time.monotonic()
    while any(map(_stores, Path("/proc").glob("[0-9]*"))):
        if time.monotonic() > began + timeout:
            raise ProcessFailedError(f"graphs are still being stored after {timeout:.0f} s")
        time.sleep(0.1)


def _stores(process: Path) -> bool:
    try:
        return b"sdexport.runtime.store_graphs" in (process / "cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False


def _watched(
    process: subprocess.Popen[bytes], outputs: Sequence[Path], started: float, timeout: float
) -> dict[str, Any]:
    status = Path(f"/proc/{process.pid}/status")
    images: list[float] = []
    memory = dict.fromkeys(FIELDS, 0.0)
    at_first: dict[str, float] = {}
    looks = 0
    while True:
        now = time.perf_counter() - started
        if len(images) < len(outputs) and outputs[len(images)].exists():
            images.append(round(now, 3))
            _sample(status, memory)
            at_first = at_first or dict(memory)
        elif looks % 5 == 0:
            _sample(status, memory)
        ended, state, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        if now > timeout:
            raise ProcessFailedError(f"no end after {timeout:.0f} s")
        looks += 1
        time.sleep(INTERVAL)
    process.returncode = os.waitstatus_to_exitcode(state)
    exit_s = time.perf_counter() - started
    late = [round(exit_s, 3) for path in outputs[len(images) :] if path.exists()]
    return {
        "images_s": images + late,
        "exit_s": round(exit_s, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "memory_mb": memory,
        "at_first_image": at_first or dict(memory),
    }


def _sample(status: Path, memory: dict[str, float]) -> None:
    try:
        text = status.read_text(encoding="ascii", errors="replace")
    except OSError:  # it has ended
        return
    for name, field in FIELDS.items():
        if found := re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE):
            memory[name] = max(memory[name], round(int(found[1]) * 1024 / 1e6, 1))


def _busy_seconds() -> float:
    """Processor time that all processes used since the system started."""
    words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, words[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
