"""Time calls on a GPU: by CUDA events in the stream, and by the host's clock until they finish."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_peers import Peers, Runner
from sdexport.bench.measure import summary
from sdexport.engines.process_memory import resident_mb

WARM_UP = 3


def measure(
    runners: Mapping[str, Runner], device: str, *, repeats: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Call each in turn after a warm-up, for `repeats` rounds or until `seconds` have passed.

    Returns: for each: host, and on a GPU events; median, p20, p80 and samples in microseconds.
    """
    samples: dict[str, list[tuple[float, float | None]]] = {name: [] for name in runners}
    for runner in runners.values():
        for _ in range(WARM_UP):
            sample(runner, device)
    end = time.monotonic() + seconds
    while len(min(samples.values(), key=len)) < repeats:
        for name, runner in runners.items():
            samples[name].append(sample(runner, device))
        if time.monotonic() > end and len(min(samples.values(), key=len)) > 1:
            break
    rows: dict[str, dict[str, Any]] = {}
    for name, taken in samples.items():
        rows[name] = {"host": summary([host for host, _ in taken], "us")}
        events = [event for _, event in taken if event is not None]
        if events:
            rows[name]["events"] = summary(events, "us")
    return rows


def sample(runner: Runner, device: str) -> tuple[float, float | None]:
    """Microseconds of one call by the host's clock, and on a GPU by events."""
    if device != "cuda":
        started = time.perf_counter()
        runner.call()
        return 1e6 * (time.perf_counter() - started), None
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record(runner.stream)
    started = time.perf_counter()
    runner.call()
    after.record(runner.stream)
    torch.cuda.synchronize()
    host = 1e6 * (time.perf_counter() - started)
    return host, 1e3 * before.elapsed_time(after)


def limits(device: str) -> dict[str, float]:
    """Measured limits of the device: a product of large matrices, and a large copy.

    Returns: flops_per_s (float16 on a GPU, else float32), bytes_per_s (read and written).
    """
    gpu = device == "cuda"
    size, count = (8192, 2**29) if gpu else (256, 2**20)
    a, b = (
        torch.randn(size, size, device=device).to(torch.float16 if gpu else torch.float32)
        for _ in range(2)
    )
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    stream = torch.cuda.current_stream() if gpu else None
    runners = {
        "product": Runner(lambda: a @ b, dict, stream),
        "copy": Runner(lambda: target.copy_(source), dict, stream),
    }
    rows = measure(runners, device, repeats=10, seconds=5)
    taken = {name: fastest(row) for name, row in rows.items()}
    return {
        "flops_per_s": 2e6 * size**3 / taken["product"],
        "bytes_per_s": 2e6 * count / taken["copy"],
    }


def fastest(row: Mapping[str, Any]) -> float:
    """The median of the events if there are any, else of the host's clock."""
    return float(row.get("events", row["host"])["median_us"])


def cost(peers: Peers, component: str, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Floating-point operations of a call, and the bytes of its weights.

    Counted with tensors on the meta device.
    """
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    part = peers.parts[component]
    wrapped = part.wrap(peers.loaded(part.source)).eval()
    state = {**dict(wrapped.named_parameters()), **dict(wrapped.named_buffers())}
    used = {name: value.to("meta") for name, value in state.items()}
    inputs = {name: torch.from_numpy(value).to("meta") for name, value in feeds.items()}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        functional_call(wrapped, used, kwargs=inputs)
    itemsize = peers.half.itemsize
    return {
        "flops": float(counter.get_total_flops()),
        "bytes": float(sum(value.numel() for value in used.values()) * itemsize),
    }


def shares(row: Mapping[str, Any], work: Mapping[str, float], limit: Mapping[str, float]) -> Any:
    """The shares of the two limits that a row reaches."""
    seconds = fastest(row) / 1e6
    return {
        "tflops": work["flops"] / seconds / 1e12,
        "arithmetic": work["flops"] / seconds / limit["flops_per_s"],
        "bandwidth": work["bytes"] / seconds / limit["bytes_per_s"],
    }


def device_bytes(device: str) -> int:
    """Memory in use: on a GPU all of the device's, also that of other processes; else ours.

    PyTorch and ONNX Runtime keep what they have freed, so the figure after some work is the peak.
    """
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return int(total - free)
    return int(1e6 * (resident_mb()["resident_mb"] or 0))


def torch_peak() -> int | None:
    """The largest memory of PyTorch's tensors on the GPU, in bytes; None without a GPU."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
