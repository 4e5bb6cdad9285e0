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

from benchmarks.reports import read, save
from benchmarks.server_cancel import cancelling
from benchmarks.server_client import Client, ServerProcess
from benchmarks.server_load import BUSY, many_clients, request
from sdexport import load_pipeline
from sdexport.demo_model import PACKAGE_DIR

RESULT = Path(__file__).parent / "results" / "server.json"
REPEATS = 100


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
    found["over_ms"] = [a - b for a, b in zip(served, library, strict=True)]  # one after the other
    return {name: statistics.median(values) * 1000 for name, values in found.items()}


def start(package: Path, times: int = 3) -> dict[str, Any]:
    """Seconds from the start of the process to ready, with a warm file cache."""
    seconds = []
    for _ in range(times + 1):
        with ServerProcess(package) as server:
            seconds.append(server.seconds_to_ready)
    return {"seconds": seconds[1:], "median_seconds": statistics.median(seconds[1:])}


def batches(count: int = 32) -> dict[str, Any]:
    """Images a second of four clients, one image at a time and four together."""

    def rate(most: int) -> float:
        with ServerProcess(PACKAGE_DIR, "--max-batch", str(most)) as server:

            def work(place: int, rounds: int) -> None:
                client = Client(server.port)
                for index in range(rounds):
                    client.generate(request(place + 4 * index, 10))

            run_all([lambda i=i: work(i, 1) for i in range(4)])  # type: ignore[misc]
            began = time.perf_counter()
            run_all([lambda i=i: work(i, count // 4) for i in range(4)])  # type: ignore[misc]
            return count / (time.perf_counter() - began)

    rates = [(rate(1), rate(4)) for _ in range(3)]
    single, batched = (statistics.median(each) for each in zip(*rates, strict=True))
    return {
        "single_per_second": single,
        "batched_per_second": batched,
        "ratio": statistics.median(four / one for one, four in rates),
    }


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
        "cancelling": lambda: cancelling(PACKAGE_DIR),
        "batches": batches,
        "killed": killed,
        "many_clients": lambda: many_clients(PACKAGE_DIR, arguments.minutes),
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
