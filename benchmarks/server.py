"""What the image server costs, and what it withstands; loopback only, with the demo model.

    python -m benchmarks.server [--minutes 5] [--package PREPARED] [--only NAME] [--json FILE]

Measures the time over the library's own call, the time from the start to ready (also of PREPARED,
such as a prepared SD 1.5 package), many clients at once, cancelling, batches, and kill -9. Every
image is compared with the library's. Measure on a quiet machine; the minutes of the clients and two
more. Rows of an earlier report that are not measured are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reports import read, save
from benchmarks.server_client import Client, ServerProcess
from sdexport import load_pipeline
from sdexport.demo_model import PACKAGE_DIR

RESULT = Path(__file__).parent / "results" / "server.json"
STEPS = 4
PROMPTS = [f"a large {what} on a white background" for what in ("red circle", "blue star")]
PROMPTS += [f"a small {what} on a black background" for what in ("green square", "white cross")]
CLIENTS = 64
REPEATS = 30
BUSY = http.client.HTTPException, OSError


def request(index: int, steps: int = STEPS) -> dict[str, Any]:
    """One of 16 requests that can run together."""
    index %= 16
    return {"prompt": PROMPTS[index % 4], "seed": index, "num_inference_steps": steps}


def overhead() -> dict[str, Any]:
    """Milliseconds from a request to the end of its job over the library's own call."""
    library, served, stages = [], [], []
    with load_pipeline(PACKAGE_DIR) as pipe, ServerProcess(PACKAGE_DIR) as server:
        client = Client(server.port)
        pipe(**request(0))
        client.generate(request(0))
        for index in range(REPEATS):
            began = time.perf_counter()
            pipe(**request(index))
            library.append(time.perf_counter() - began)
            began = time.perf_counter()
            kind, data = client.generate(request(index))
            served.append(time.perf_counter() - began)
            if kind != "done":
                raise RuntimeError(f"{kind}: {data}")
            stages.append(served[-1] - sum(data["seconds"].values()))
    found = {"library_ms": library, "server_ms": served, "outside_of_stages_ms": stages}
    medians = {name: statistics.median(values) * 1000 for name, values in found.items()}
    return medians | {"over_ms": medians["server_ms"] - medians["library_ms"]}


def start(package: Path, times: int = 3) -> dict[str, Any]:
    """Seconds from the start of the process to ready, with a warm file cache."""
    seconds = []
    for _ in range(times + 1):
        with ServerProcess(package) as server:
            seconds.append(server.seconds_to_ready)
    return {"seconds": seconds[1:], "median_seconds": statistics.median(seconds[1:])}


def many_clients(minutes: float) -> dict[str, Any]:
    """64 clients at once: errors, wrong images, memory, and how long /healthz takes."""
    with load_pipeline(PACKAGE_DIR) as pipe:
        expected = [np.asarray(pipe(**request(i)).images[0], np.int16) for i in range(16)]
    counts = {"images": 0, "busy": 0, "errors": 0, "wrong": 0, "differing": 0}
    lock, until = threading.Lock(), time.monotonic() + minutes * 60
    memory: list[float] = []
    health: list[float] = []

    def count(name: str) -> None:
        with lock:
            counts[name] += 1

    def client(place: int, port: int) -> None:
        own, index = Client(port), place
        while time.monotonic() < until:
            index += 1
            try:
                status, job, headers = own.submit(request(index))
                if status == 429:
                    count("busy")
                    time.sleep(min(float(headers["retry-after"]), 1.0))
                    continue
                kind, data = own.wait(job["url"]) if status == 202 else ("", job)
                if kind != "done":
                    raise RuntimeError(f"{status} {kind} {data}")
                pixels = own.pixels(data["images"][0]["url"]).astype(np.int16)
                largest = int(np.abs(pixels - expected[index % 16]).max())
                count("images")
                if largest:
                    count("wrong" if largest > 1 else "differing")
            except (*BUSY, RuntimeError, KeyError, ValueError) as error:
                sys.stderr.write(f"client {place}: {error!r}\n")
                count("errors")
                own.close()
        own.close()

    def probe(server: ServerProcess) -> None:
        own = Client(server.port)
        while time.monotonic() < until:
            began = time.perf_counter()
            own.get("/healthz")
            health.append(time.perf_counter() - began)
            if len(health) % 20 == 1:
                memory.append(server.metric("process_resident_memory_bytes") / 1e6)
            time.sleep(0.05)

    with ServerProcess(PACKAGE_DIR, "--max-queue", "48") as server:
        threads = [
            threading.Thread(target=client, args=(i, server.port), daemon=True)
            for i in range(CLIENTS)
        ]
        threads.append(threading.Thread(target=probe, args=(server,), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    health.sort()
    quarter = len(memory) // 4
    return {
        "clients": CLIENTS,
        "minutes": minutes,
        **counts,
        "healthz_p50_ms": health[len(health) // 2] * 1000,
        "healthz_p99_ms": health[int(len(health) * 0.99)] * 1000,
        "quarter_mb": memory[quarter],
        "last_mb": memory[-1],
        "largest_mb": max(memory),
    }


def cancelling() -> dict[str, Any]:
    """Milliseconds until a cancelled job has freed the engine, in steps."""
    found, steps = [], []
    with ServerProcess(PACKAGE_DIR) as server:
        client, other = Client(server.port), Client(server.port)
        client.generate(request(0))
        for _ in range(10):
            _, job, _ = client.submit(request(0, 150))
            state: dict[str, Any] = {"step": 0}
            while state["step"] < 5:
                state = job_state(client, job)
            step, began = state["step"], time.perf_counter()
            while state["step"] < step + 5:
                state = job_state(client, job)
            steps.append((time.perf_counter() - began) / 5)
            _, next_job, _ = other.submit(request(1, 1))
            began = time.perf_counter()
            client.ask("DELETE", job["url"]).read()
            while job_state(other, next_job)["status"] == "queued":
                time.sleep(0.0005)
            found.append(time.perf_counter() - began)
            other.wait(next_job["url"])
    step = statistics.median(steps)
    return {
        "step_ms": step * 1000,
        "freed_ms": statistics.median(found) * 1000,
        "largest_freed_ms": max(found) * 1000,
        "steps": statistics.median(found) / step,
    }


def job_state(client: Client, job: dict[str, Any]) -> Any:
    """The state of a job."""
    return json.loads(client.get(job["url"])[1])


def batches(count: int = 48) -> dict[str, Any]:
    """Images a second of four clients, one image at a time and four together."""

    def rate(*options: str) -> float:
        with ServerProcess(PACKAGE_DIR, *options) as server:
            Client(server.port).generate(request(0))

            def work(place: int, rounds: int) -> None:
                client = Client(server.port)
                for index in range(rounds):
                    client.generate(request(place + 4 * index, 10))

            run_all([lambda i=i: work(i, 2) for i in range(4)])  # type: ignore[misc]
            began = time.perf_counter()
            run_all([lambda i=i: work(i, count // 4) for i in range(4)])  # type: ignore[misc]
            return count / (time.perf_counter() - began)

    single = [rate("--max-batch", "1") for _ in range(3)]
    batched = [rate("--max-batch", "4") for _ in range(3)]
    best = max(single), max(batched)
    return {"single_per_second": best[0], "batched_per_second": best[1], "ratio": best[1] / best[0]}


def run_all(functions: list[Callable[[], object]]) -> None:
    """Run functions at once, each in a thread."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def killed() -> dict[str, Any]:
    """What is left after kill -9 in the middle of a job, and whether a new server works."""
    with tempfile.TemporaryDirectory(prefix="sdexport-server-") as name:
        work = Path(name)
        folders = {"TMPDIR": work / "tmp", "HOME": work / "home"}
        for folder in folders.values():
            folder.mkdir()
        environment = {key: str(folder) for key, folder in folders.items()}
        environment["SDEXPORT_CACHE"] = "off"
        before = files_of(PACKAGE_DIR)
        server = ServerProcess(PACKAGE_DIR, environment=environment)
        client = Client(server.port)
        client.generate(request(0))
        _, job, _ = client.submit(request(0, 150))
        outcome: list[str] = []

        def wait() -> None:
            try:
                outcome.append(client.wait(job["url"])[0])
            except (*BUSY, ValueError, KeyError) as error:
                outcome.append(type(error).__name__)

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.5)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        waiting.join()
        left = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())
        with ServerProcess(PACKAGE_DIR, environment=environment) as again:
            other = Client(again.port)
            works = other.generate(request(0))[0] == "done"
            status, _ = other.get(job["url"])
        return {
            "client_sees": outcome[0],
            "package_unchanged": files_of(PACKAGE_DIR) == before,
            "files_left": left,
            "new_server_works": works,
            "old_job_status": status,
        }


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file."""
    stats = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path): (status.st_size, status.st_mtime_ns) for path, status in stats.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of the many clients")
    parser.add_argument("--package", type=Path, help="whose start is measured too")
    parser.add_argument("--only", default="", help="measurements whose name contains this")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "overhead": overhead,
        "start": lambda: start(PACKAGE_DIR),
        "cancelling": cancelling,
        "batches": batches,
        "killed": killed,
        "many_clients": lambda: many_clients(arguments.minutes),
    }
    if arguments.package is not None:
        cases["start_prepared"] = lambda: start(arguments.package)
    report = read(arguments.json)
    for name, measure in cases.items():
        if arguments.only in name:
            report[name] = measure()
            sys.stderr.write(f"{name}: {report[name]}\n")
            with contextlib.suppress(KeyboardInterrupt):
                save(report, arguments.json)


if __name__ == "__main__":
    main()
