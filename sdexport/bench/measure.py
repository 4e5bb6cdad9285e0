"""Statistics of timings, and a description of the machine they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any

from sdexport.engines.cache.processor import cpuinfo, instructions
from sdexport.engines.errors import InvalidArgumentError

CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd")
"""Instruction sets that decide which kernels an engine uses."""


def summary(samples: Sequence[float], unit: str = "s") -> dict[str, Any]:
    """Median, 20th and 80th percentile, and the samples themselves.

    Args:
      unit: the suffix of the names: median_s, p20_s, p80_s, samples_s.
    Raises: InvalidArgumentError: there are no samples.
    """
    if not samples:
        raise InvalidArgumentError("there are no samples to summarise")
    fifths = [samples[0]] * 4 if len(samples) == 1 else statistics.quantiles(samples, n=5)
    values = {"median": statistics.median(samples), "p20": fifths[0], "p80": fifths[-1]}
    low, high = min(samples), max(samples)  # of few samples the quantiles may lie outside these
    digits = 6 if unit == "s" else 2
    found: dict[str, Any] = {
        f"{name}_{unit}": round(min(max(value, low), high), digits)
        for name, value in values.items()
    }
    return found | {f"samples_{unit}": [round(value, digits) for value in samples]}


def machine() -> dict[str, Any]:
    """Processor, its instruction sets, cores that this process may use, memory, Python.

    The family of the processor is included because name and instruction sets may be equal where the
    speed differs by two: Zen 4 (family 25) computes 512 bits in two halves, Zen 5 (26) at once.
    """
    lines = cpuinfo()
    model = lines.get("model name", platform.processor() or platform.machine())
    flags = instructions()
    allowed = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": model,
        "cpu_family": lines.get("cpu family"),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": len(allowed(0)) if allowed else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "threads": {k: os.environ[k] for k in ("OMP_NUM_THREADS",) if k in os.environ},
        "platform": platform.system(),
        "python": platform.python_version(),
    }


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None
