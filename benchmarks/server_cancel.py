"""How soon a cancelled job frees a server's engine, and its place in the queue."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.server_client import Client, ServerProcess
from benchmarks.server_load import request

TIMES = 20
_MEASURED = 10
"""Steps whose length is measured before each cancelling."""


def cancelling(package: Path) -> dict[str, Any]:
    """Milliseconds until a cancelled job has freed the engine, also in steps of that job."""
    steps, found = [], []
    draw = random.Random(0)
    with ServerProcess(package) as server:
        running, waiting, other = (Client(server.port) for _ in range(3))
        running.generate(request(0))
        for _ in range(TIMES):
            _, job, _ = running.submit(request(0, 150))
            events = running.events(job["url"])
            times = [data["seconds"] for kind, data in events_of(events, "step", _MEASURED)]
            steps.append(statistics.median(b - a for a, b in itertools.pairwise(times)))
            _, coming, _ = waiting.submit(request(1, 1))
            coming_events = waiting.events(coming["url"])
            time.sleep(0.05 + draw.random() * 0.1)  # anywhere in a step
            began = time.perf_counter()
            other.ask("DELETE", job["url"]).read()
            for kind, data in coming_events:
                if kind != "status" or data["status"] == "running":
                    break
            found.append(time.perf_counter() - began)
            for _ in itertools.chain(coming_events, events):
                pass
    step = statistics.median(steps)
    return {
        "step_ms": step * 1000,
        "freed_ms": statistics.median(found) * 1000,
        "largest_freed_ms": max(found) * 1000,
        "steps": statistics.median(found) / step,
        "largest_steps": max(found) / step,
        "place_is_free_at_once": _place_is_free(package),
    }


def events_of(events: Any, kind: str, count: int) -> list[Any]:
    """The next events of a kind."""
    return list(itertools.islice((event for event in events if event[0] == kind), count))


def _place_is_free(package: Path) -> bool:
    """Whether a full queue takes a job right after one that waited was cancelled."""
    with ServerProcess(package, "--max-queue", "1") as server:
        client = Client(server.port)
        _, running, _ = client.submit(request(0, 150))
        while client.state(running)["status"] == "queued":
            time.sleep(0.001)
        _, waiting, _ = client.submit(request(1, 150))
        full, _, _ = client.submit(request(2, 150))
        client.ask("DELETE", waiting["url"]).read()
        status, last, _ = client.submit(request(3, 150))
        for job in (running, last):
            client.ask("DELETE", job["url"]).read()
        return (full, status) == (429, 202)
