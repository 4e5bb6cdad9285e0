"""What the system says of the processor."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def cpuinfo() -> dict[str, str]:
    """The lines of /proc/cpuinfo on the first processor, by name; empty where there are none."""
    with suppress(OSError):
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
        pairs = (line.split(":", 1) for line in text.splitlines())
        found = [(pair[0].strip(), pair[1].strip()) for pair in pairs if len(pair) == 2]
        return dict(reversed(found))
    return {}


def instructions() -> list[str]:
    """Names of the instruction sets that it has, as Linux gives them; empty elsewhere."""
    lines = cpuinfo()
    return lines.get("flags", lines.get("Features", "")).split()
