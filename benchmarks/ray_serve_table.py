"""The table of benchmarks/results/ray_serve.json."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import table_row

MISSING = "not measured yet"


def table(report: dict[str, Any]) -> str:
    """What the server on Ray Serve costs."""
    rate = report.get("throughput", {})
    rows = [
        ("images a second, one worker", _rate(rate, "workers_1_per_second")),
        ("images a second, two workers", _rate(rate, "workers_2_per_second")),
        (
            "images a second, `sdexport serve`, one thread",
            _rate(rate, "serve_one_thread_per_second"),
        ),
        ("time of one image outside of its stages", _overhead(report.get("overhead"))),
        (
            "from the death of a worker to the next step of its job, with another one free",
            _seconds(report.get("killed"), "median_seconds"),
        ),
        (
            "from the load to a second worker that runs, `upscale_delay_s` 1",
            _seconds(report.get("scaling"), "up_seconds"),
        ),
    ]
    lines = [
        "The demo model, 128x128, 20 steps, batches of at most 4, 12 clients on the same two "
        "cores, on which Ray itself runs too (`python -m benchmarks.ray_serve`):\n",
        "| figure | measured |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(table_row(what, shown) for what, shown in rows)])


def _rate(found: dict[str, Any], name: str) -> str:
    return f"{found[name]:.1f}" if name in found else MISSING


def _overhead(found: dict[str, Any] | None) -> str:
    if not found:
        return MISSING
    return f"{found['ray_ms']:.0f} ms; with `sdexport serve` {found['serve_ms']:.0f} ms"


def _seconds(found: dict[str, Any] | None, name: str) -> str:
    return f"{found[name]:.1f} s" if found else MISSING
