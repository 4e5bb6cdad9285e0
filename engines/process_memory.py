"""Memory of this process, as Linux reports it, and the time and memory of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float | None]]:
    """The result of a call, with its seconds and the process's peak memory in MB meanwhile."""
    reset_peak()
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    return result, {"seconds": seconds, "peak_mb": peak_mb()}


def reset_peak() -> None:
    """Set the peak to what is resident now; does nothing outside Linux."""
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


def peak_mb() -> float | None:
    """Largest resident size in MB since `reset_peak`; None outside Linux."""
    return _mb("VmHWM")


def resident_mb() -> dict[str, float | None]:
    """Resident memory in MB: in all, and without mapped files; None outside Linux."""
    return {"resident_mb": _mb("VmRSS"), "private_mb": _mb("RssAnon")}


def mapped_files_bytes() -> int:
    """Bytes of mapped files that are resident; 0 outside Linux."""
    return _bytes("RssFile") or 0


def _mb(field: str) -> float | None:
    size = _bytes(field)
    return None if size is None else round(size / 1e6, 1)


def _bytes(field: str) -> int | None:
    """A field of the process's status, whose unit there is 1024 bytes."""
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
