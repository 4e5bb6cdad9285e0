"""Time several functions in turn, one call of each, so that all see the same machine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.reports import save
from sdexport.bench.measure import machine, summary

WARM_UP = 5


def alternate(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, Any]:
    """Call each in turn, `repeats` times after a warm-up; median, p20, p80 and samples in us.

    Args:
      before: untimed preparation of one call.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-WARM_UP, repeats):
        for name, call in calls.items():
            before(name)
            started = time.perf_counter_ns()
            call()
            elapsed = time.perf_counter_ns() - started
            if number >= 0:
                samples[name].append(elapsed / 1000)
    return {name: summary(values, "us") for name, values in samples.items()}


def environment(*packages: str) -> dict[str, Any]:
    """The machine, and the versions of these packages."""
    versions = {name: metadata.version(name) for name in packages}
    return {"machine": machine(), "versions": versions}


def show_and_save(report: dict[str, Any], rows: Mapping[str, dict[str, Any]], args: Any) -> None:
    """Print a line for each timing, and write the whole report to the file of --json."""
    for title, peers in rows.items():
        times = "   ".join(f"{name} {peer['median_us']:,.1f} us" for name, peer in peers.items())
        print(f"{title:40} {times}")
    save(report, args.json)


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description, prog=f"python -m benchmarks.{module}")
    result.add_argument("--json", type=Path, help="write the report here")
    result.add_argument("--repeats", type=int, default=300)
    return result
