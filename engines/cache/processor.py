"""The processor as the operating system describes it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, by name; {} outside Linux."""
    with suppress(OSError):
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
        pairs = (line.split(":", 1) for line in text.splitlines())
        values = [(pair[0].strip(), pair[1].strip()) for pair in pairs if len(pair) == 2]
        return dict(reversed(values))
    return {}


def instructions() -> list[str]:
    """Linux's names of the processor's instruction sets; [] outside Linux."""
    lines = cpuinfo()
    return lines.get("flags", lines.get("Features", "")).split()
