"""The processor as the operating system describes it."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_KERNEL_INSTRUCTIONS = re.compile(r"avx|sse4|fma$|f16c|amx|asimd|sve|sme\d*$|bf16|i8mm|neon")


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


@cache
def kernel_target() -> dict[str, str]:
    """What the weights are laid out for: the architecture and the instructions that kernels use."""
    used = sorted({word for word in instructions() if _KERNEL_INSTRUCTIONS.match(word)})
    return {
        "machine": platform.machine(),
        "instructions": " ".join(used) or platform.processor() or "not known",
    }
