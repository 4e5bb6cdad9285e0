"""Many clients of a server at once, and how long /healthz takes meanwhile.

    python -m benchmarks.server_load PORT SECONDS

asks /healthz from a process of its own, so that the clients do not delay the measurement.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.server_client import Client, ServerProcess
from sdexport import load_pipeline

CLIENTS = 64
PAUSE = 0.05
"""Seconds between two questions for the state."""
BUSY = http.client.HTTPException, OSError
STEPS = 4
PROMPTS = [f"a large {what} on a white background" for what in ("red circle", "blue star")]
PROMPTS += [f"a small {what} on a black background" for what in ("green square", "white cross")]
DIFFERENT = 16
"""Requests that differ."""


def request(index: int, steps: int = STEPS) -> dict[str, Any]:
    """One of 16 requests that can run together."""
    index %= DIFFERENT
    return {"prompt": PROMPTS[index % 4], "seed": index, "num_inference_steps": steps}


class _Clients:
    """Clients that request images until a time, and compare each with the library's."""

    def __init__(self, port: int, until: float, expected: list[np.ndarray]) -> None:
        self._port, self._until, self._expected = port, until, expected
        self._lock = threading.Lock()
        self.counts = {"images": 0, "busy": 0, "errors": 0, "wrong": 0, "differing": 0}
        self.seconds: list[float] = []

    def run(self, place: int) -> None:
        own, index = Client(self._port), place
        while time.monotonic() < self._until:
            index += 1
            try:
                self._generate(own, index)
            except (*BUSY, RuntimeError, KeyError, ValueError) as error:
                sys.stderr.write(f"client {place}: {error!r}\n")
                self._count("errors")
                own.close()
        own.close()

    def _generate(self, own: Client, index: int) -> None:
        began = time.perf_counter()
        status, job, headers = own.submit(request(index))
        if status == 429:
            self._count("busy")
            time.sleep(min(float(headers["retry-after"]), 1.0))
            return
        kind, data = own.wait(job["url"]) if status == 202 else ("", job)
        if kind != "done":
            raise RuntimeError(f"{status} {kind} {data}")
        pixels = own.pixels(data["images"][0]["url"]).astype(np.int16)
        largest = int(np.abs(pixels - self._expected[index % DIFFERENT]).max())
        self._count("images")
        self.seconds.append(time.perf_counter() - began)
        if largest:
            self._count("wrong" if largest > 1 else "differing")

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1


def many_clients(package: Path, minutes: float) -> dict[str, Any]:
    """64 clients at once: errors, wrong images, memory, and how long /healthz takes."""
    with load_pipeline(package) as pipe:
        expected = [np.asarray(pipe(**request(i)).images[0], np.int16) for i in range(DIFFERENT)]
    memory: list[float] = []
    with ServerProcess(package, "--max-queue", "48") as server:
        Client(server.port).generate(request(0))
        until = time.monotonic() + minutes * 60
        command = [sys.executable, "-m", "benchmarks.server_load", str(server.port)]
        probe = subprocess.Popen([*command, str(minutes * 60)], stdout=subprocess.PIPE, text=True)
        clients = _Clients(server.port, until, expected)
        threads = [
            threading.Thread(target=clients.run, args=(place,), daemon=True)
            for place in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            memory.append(server.metric("process_resident_memory_bytes") / 1e6)
            time.sleep(min(2.0, minutes * 3))
        for thread in threads:
            thread.join()
        found = json.loads(probe.communicate()[0])
        processor = server.metric("process_cpu_seconds_total")
    clients.seconds.sort()
    return {
        "clients": CLIENTS,
        "minutes": minutes,
        **clients.counts,
        **found,
        "median_seconds": clients.seconds[len(clients.seconds) // 2],
        "processor_seconds": processor,
        "quarter_mb": memory[len(memory) // 4],
        "last_mb": memory[-1],
        "largest_mb": max(memory),
    }


def probed(port: int, seconds: float) -> dict[str, float]:
    """How long /healthz takes, asked again and again."""
    client, found, until = Client(port), [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        status, _ = client.get("/healthz")
        found.append((time.perf_counter() - began) * 1000)
        if status != 200:
            raise RuntimeError(f"/healthz answered {status}")
        time.sleep(PAUSE)
    found.sort()
    return {
        "healthz_count": len(found),
        "healthz_p50_ms": found[len(found) // 2],
        "healthz_p99_ms": found[int(len(found) * 0.99)],
        "healthz_largest_ms": found[-1],
        "healthz_processor_seconds": sum(os.times()[:2]),
    }


if __name__ == "__main__":
    print(json.dumps(probed(int(sys.argv[1]), float(sys.argv[2]))))
