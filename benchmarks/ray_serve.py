"""What the server on Ray Serve costs and withstands; loopback only, with the demo model.

    python -m benchmarks.ray_serve [--seconds 20] [--only NAME] [--json FILE]

Needs the extras `ray` and `test`, Linux and two processors. Measures the throughput of one and two
workers, the time of one image compared with `sdexport serve`, the time until the jobs of a worker
that was killed go on, and until a second worker runs. Measure on a quiet machine; three minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reports import read, save
from benchmarks.server import request, run_all
from benchmarks.server_client import Client, ServerProcess
from sdexport.demo_model import PACKAGE_DIR
from tests.helpers.live_server import wait_until
from tests.helpers.ray_process import RayProcess, ray_process

RESULT = Path(__file__).parent / "results" / "ray_serve.json"
WORKER = "ImageWorker"
CLIENTS, STEPS, REPEATS = 12, 20, 30


def served(least: int, most: int) -> Any:
    """The server on Ray, in batches of at most 4."""
    return ray_process(
        package={"demo": str(PACKAGE_DIR)},
        min_replicas=least,
        max_replicas=most,
        upscale_delay_s=1,
        downscale_delay_s=2,
        grace=1,
        warm_up=True,
    )


def rate(port: int, seconds: float) -> float:
    """Images a second of clients that ask again as soon as they are answered."""
    for each in range(4):
        Client(port).generate(request(each))
    until = time.monotonic() + seconds
    counts = [0] * CLIENTS

    def work(place: int) -> None:
        client = Client(port)
        while time.monotonic() < until:
            kind, data = client.generate(request(place + CLIENTS * counts[place], STEPS))
            if kind != "done":
                raise RuntimeError(f"{kind}: {data}")
            counts[place] += 1

    began = time.perf_counter()
    run_all([lambda i=i: work(i) for i in range(CLIENTS)])  # type: ignore[misc]
    return sum(counts) / (time.perf_counter() - began)


def throughput(seconds: float) -> dict[str, Any]:
    """Images a second of one worker, of two, and of `sdexport serve` with one thread."""
    found = {}
    for workers in (1, 2):
        with served(workers, workers) as server:
            wait_until(lambda: server.replicas() == workers)  # noqa: B023
            found[f"workers_{workers}_per_second"] = rate(server.port, seconds)
    with ServerProcess(PACKAGE_DIR, "--option", "threads=1") as alone:
        found["serve_one_thread_per_second"] = rate(alone.port, seconds)
    return {"clients": CLIENTS, "steps": STEPS, **found}


def overhead() -> dict[str, Any]:
    """Milliseconds of one image outside of its stages, of both servers."""

    def outside(port: int) -> float:
        client, found = Client(port), []
        client.generate(request(0))
        for index in range(REPEATS):
            began = time.perf_counter()
            kind, data = client.generate(request(index))
            if kind != "done":
                raise RuntimeError(f"{kind}: {data}")
            found.append(time.perf_counter() - began - sum(data["seconds"].values()))
        return statistics.median(found) * 1000

    with ServerProcess(PACKAGE_DIR, "--option", "threads=1") as alone:
        single = outside(alone.port)
    with served(1, 1) as server:
        on_ray = outside(server.port)
    return {"serve_ms": single, "ray_ms": on_ray, "over_ms": on_ray - single}


def killed(times: int = 5) -> dict[str, Any]:
    """Seconds until a job of a worker that was killed runs again, on another that is free."""
    found = []
    with served(2, 2) as server:
        client = Client(server.port)
        for _ in range(times):
            wait_until(lambda: server.replicas() == 2 and len(server.pids(WORKER)) == 2)
            _, job, _ = client.submit(request(0, 150))
            wait_until(lambda: server.json("GET", job["url"])[1]["step"] >= 5)  # noqa: B023
            step = server.json("GET", job["url"])[1]["step"]
            began = time.perf_counter()
            os.kill(busiest(server), signal.SIGKILL)
            state = server.json("GET", job["url"])[1]
            while state["step"] >= step and state["status"] == "running":
                step = max(step, state["step"])
                state = server.json("GET", job["url"])[1]
            found.append(time.perf_counter() - began)
            if client.wait(job["url"])[0] != "done":
                raise RuntimeError("the job was lost")
    return {"seconds": found, "median_seconds": statistics.median(found)}


def busiest(server: RayProcess) -> int:
    """The worker that uses most processor time now."""

    def used() -> dict[int, int]:
        found = {}
        for pid in server.pids(WORKER):
            parts = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            found[pid] = int(parts[11]) + int(parts[12])
        return found

    before = used()
    time.sleep(0.2)
    after = used()
    return max(after, key=lambda pid: after[pid] - before.get(pid, 0))


def scaling() -> dict[str, Any]:
    """Seconds from the load to a second worker that runs, and from its end to one again."""
    with served(1, 2) as server:
        stop = threading.Event()

        def work(place: int) -> None:
            client = Client(server.port)
            while not stop.is_set():
                client.generate(request(place, STEPS))

        clients = [threading.Thread(target=work, args=(i,)) for i in range(CLIENTS)]
        began = time.perf_counter()
        for client in clients:
            client.start()
        wait_until(lambda: server.replicas() == 2)
        up = time.perf_counter() - began
        stop.set()
        for client in clients:
            client.join()
        began = time.perf_counter()
        wait_until(lambda: server.replicas() == 1)
        return {"up_seconds": up, "down_seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each throughput")
    parser.add_argument("--only", default="", help="measurements whose name contains this")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "overhead": overhead,
        "throughput": lambda: throughput(arguments.seconds),
        "killed": killed,
        "scaling": scaling,
    }
    report = read(arguments.json)
    for name, measure in cases.items():
        if arguments.only in name:
            report[name] = measure()
            sys.stderr.write(f"{name}: {report[name]}\n")
            save(report, arguments.json)


if __name__ == "__main__":
    main()
