"""The table of benchmarks/results/server.json."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import table_row

MISSING = "not measured yet"


def table(report: dict[str, Any]) -> str:
    """What the server costs and withstands, next to what must hold."""
    rows = [
        ("time over the library's own call, one image", "5 ms", "overhead", _overhead),
        ("start of the process to ready, demo model", "", "start", _start),
        ("start of the process to ready, prepared SD 1.5", "3 s", "start_prepared", _start),
        ("64 clients at once", "no error but 429, no wrong image", "many_clients", _clients),
        ("their memory", "flat", "many_clients", _memory),
        ("/healthz meanwhile, p99", "50 ms", "many_clients", _health),
        ("a cancelled job has freed the engine after", "one step", "cancelling", _cancelled),
        ("images a second in batches of 4, compared with 1", "1.5", "batches", _batches),
        ("kill -9 in the middle of a job", "nothing left, clear error", "killed", _killed),
    ]
    lines = [
        "The demo model, 128x128, on two cores, clients on the same machine "
        "(`python -m benchmarks.server`):\n",
        "| figure | bound | measured |",
        "|---|---|---|",
    ]
    for what, bound, name, shown in rows:
        found = report.get(name)
        lines.append(table_row(what, bound, shown(found) if found else MISSING))
    return "\n".join(lines)


def _overhead(found: dict[str, Any]) -> str:
    return (
        f"{found['over_ms']:.1f} ms ({found['server_ms']:.0f} and {found['library_ms']:.0f} ms); "
        f"outside of the stages {found['outside_of_stages_ms']:.1f} ms"
    )


def _start(found: dict[str, Any]) -> str:
    return f"{found['median_seconds']:.2f} s"


def _clients(found: dict[str, Any]) -> str:
    return (
        f"{found['minutes']:g} minutes, {found['images']:,} images: {found['errors']} errors, "
        f"{found['busy']:,} times 429, {found['wrong']} wrong, {found['differing']} not the same "
        "bits"
    )


def _memory(found: dict[str, Any]) -> str:
    return f"{found['quarter_mb']:.0f} MB after a quarter, {found['last_mb']:.0f} MB at the end"


def _health(found: dict[str, Any]) -> str:
    return f"{found['healthz_p99_ms']:.0f} ms (median {found['healthz_p50_ms']:.1f} ms)"


def _cancelled(found: dict[str, Any]) -> str:
    place = "at once" if found["place_is_free_at_once"] else "LATER"
    return (
        f"{found['steps']:.1f} steps, {found['largest_steps']:.1f} at most "
        f"({found['freed_ms']:.0f} of {found['step_ms']:.0f} ms); its place in the queue {place}"
    )


def _batches(found: dict[str, Any]) -> str:
    return (
        f"{found['ratio']:.2f} ({found['batched_per_second']:.2f} and "
        f"{found['single_per_second']:.2f})"
    )


def _killed(found: dict[str, Any]) -> str:
    left = ", ".join(found["files_left"]) or "no file"
    same = "the package unchanged" if found["package_unchanged"] else "THE PACKAGE CHANGED"
    return f"{left} left, {same}; the client sees {found['client_sees']}; a new server works"
