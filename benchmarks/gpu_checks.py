"""Checks on a GPU before anything is timed: CUDA itself, and the session contract."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sdexport import TorchGenerator
from sdexport.engines import Session, cuda_device

Feeds = dict[str, np.ndarray]


def check_cuda() -> dict[str, Any]:
    """Copy to the device and back, and replay a captured copy on other data."""
    size = 64 << 20
    stream = cuda_device.Stream()
    host, back = cuda_device.PinnedBuffer(size), cuda_device.PinnedBuffer(size)
    a, b = cuda_device.DeviceBuffer(size), cuda_device.DeviceBuffer(size)
    sent, got = host.view((size // 4,), "float32"), back.view((size // 4,), "float32")
    sent[:] = np.arange(sent.size, dtype=np.float32)
    stream.upload(a, host, size)
    stream.duplicate(b, a, size)
    stream.download(back, b, size)
    stream.synchronize()
    copied = bool((sent == got).all())
    graph = stream.capture(lambda: stream.duplicate(b, a, size))
    sent += 1
    stream.upload(a, host, size)
    graph.launch(stream)
    stream.download(back, b, size)
    stream.synchronize()
    replayed = bool((sent == got).all())
    seconds = {}
    for name, work in {
        "upload": lambda: stream.upload(a, host, size),
        "download": lambda: stream.download(back, a, size),
        "graph_of_a_copy": lambda: graph.launch(stream),
    }.items():
        samples = []
        for _ in range(20):
            started = time.perf_counter()
            work()
            stream.synchronize()
            samples.append(time.perf_counter() - started)
        seconds[name] = size / sorted(samples)[10] / 1e9
    try:
        cuda_device.DeviceBuffer(1 << 50)
        refused = ""
    except cuda_device.EngineError as error:
        refused = str(error)
    del sent, got
    for thing in (graph, a, b, host, back, stream):
        thing.close()
        thing.close()
    return {"copied": copied, "replayed": replayed, "gb_per_s": seconds, "out_of_memory": refused}


NOISE_SEEDS = (0, 42, 2**32, 2**63 + 5, -1)
NOISE_SIZES = (1, 3, 255, 256, 257, 16384, 4 * 64 * 96, 65536, 5)


def check_noise(device: str) -> dict[str, Any]:
    """The largest difference of our noise from that of PyTorch on this device, by seed.

    The sizes follow each other in one generator; on a GPU also some that give each thread several
    values.
    """
    import torch

    gpu: dict[str, int] = {}
    numbers = list(NOISE_SIZES)
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "multiprocessors": properties.multi_processor_count,
            "threads_per_multiprocessor": properties.max_threads_per_multi_processor,
        }
        threads = gpu["multiprocessors"] * gpu["threads_per_multiprocessor"]
        numbers += [int(factor * threads) - 3 for factor in (1, 2, 3.5, 4.01, 9)]
    largest: dict[str, float] = {}
    for seed in NOISE_SEEDS:
        theirs = torch.Generator(device)
        theirs.manual_seed(seed)
        ours = TorchGenerator(seed, device=device, **gpu)
        for size in numbers:
            expected = torch.randn(size, generator=theirs, device=device).cpu().numpy()
            difference = float(np.abs(ours.randn((size,)) - expected).max())
            largest[str(seed)] = max(largest.get(str(seed), 0.0), difference)
    return {"sizes": numbers, **gpu, "largest_difference": largest}


def contract(session: Session, feeds: Feeds, expected: Feeds) -> dict[str, Any]:
    """The parts of tests/engines/test_session_contract.py that need no other package."""
    output = next(iter(expected))
    first = session.run(feeds)[output]
    kept = first.copy()
    largest = max(value.size for value in feeds.values())
    constant = next(name for name, value in feeds.items() if value.size == largest)
    rest = {name: value for name, value in feeds.items() if name != constant}
    with session.bind(**{constant: feeds[constant]}) as bound:
        bind = [float(np.abs(bound.run(rest)[output] - kept).max()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: session.run(feeds)[output], range(12)))
    untouched = bool((first == kept).all())
    half = {n: v[:1] if len(v) == len(feeds[constant]) else v for n, v in feeds.items()}
    alone = session.run(half)[output]
    refused = ""
    try:
        session.run(feeds | {constant: feeds[constant].astype(np.float16)})
    except ValueError as error:
        refused = str(error)
    return {
        "bind": bind,
        "threads": max(float(np.abs(m - kept).max()) for m in many),
        "outputs_untouched": untouched,
        "batch_1_of_2": float(np.abs(alone - kept[:1]).max()),
        "refused": refused,
    }


def compared(outputs: Feeds, expected: Feeds) -> dict[str, float]:
    """Largest difference, relative to the output's scale, and cosine of the first output."""
    name = next(iter(expected))
    a, b = outputs[name].astype(np.float64).ravel(), expected[name].astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return {
        "max_rel": float(np.abs(a - b).max() / (np.abs(b).max() or 1.0)),
        "cosine": float(a @ b) / norms if norms else 0.0,
    }
