"""Where the time of an image goes: the time that the device is busy, and its kernels."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

ATTENTION = ("flash", "fmha", "attention", "mha", "sdpa")
"""Words in the names of kernels that compute attention in one piece."""
KERNELS = 12
RUNS = 3


def profiled(call: Callable[[], object], device: str) -> dict[str, Any]:
    """The share of a call's time in which the device does nothing, and the kernels that take most.

    The call is timed without the profiler, and run once more with it. The profiler sees the kernels
    of every library in the process. On a CPU (a dry run) PyTorch's operators stand for kernels, and
    those of ONNX Runtime are not seen.

    Returns: wall_s, busy_s, host_share, kernels as (name, seconds, calls), attention_share.
    """
    cuda = device == "cuda"
    wall = min(_seconds(call, cuda=cuda) for _ in range(RUNS))
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        _seconds(call, cuda=cuda)
    events = [e for e in profiler.events() if _counts(e, cuda=cuda)]
    spans = [(e.name, e.time_range.start, e.time_range.end) for e in events]
    return {"wall_s": wall} | shares(spans, wall)


def shares(spans: Iterable[tuple[str, float, float]], wall: float) -> dict[str, Any]:
    """The figures of `profiled`.

    Args:
      spans: name, start and end in microseconds of what ran on the device. wall: in seconds.
    """
    spans = sorted(spans, key=lambda span: span[1])
    seconds, calls = Counter[str](), Counter[str]()
    busy, reached = 0.0, float("-inf")
    for name, start, end in spans:
        seconds[name] += (end - start) / 1e6  # type: ignore[assignment]
        calls[name] += 1
        busy += max(end - max(start, reached), 0.0) / 1e6
        reached = max(reached, end)
    total = sum(seconds.values())
    fused = sum(s for name, s in seconds.items() if any(w in name.lower() for w in ATTENTION))
    return {
        "busy_s": busy,
        "host_share": max(1 - busy / wall, 0.0) if busy else None,
        "kernels": [(name[:120], s, calls[name]) for name, s in seconds.most_common(KERNELS)],
        "attention_share": fused / total if total else None,
    }


def _counts(event: Any, *, cuda: bool) -> bool:
    if cuda:
        return event.device_type == DeviceType.CUDA
    return event.cpu_parent is None


def _seconds(call: Callable[[], object], *, cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
