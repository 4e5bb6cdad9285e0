"""The tables of docs/security.md: fuzzing, faults, memory, concurrency, interruption."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.tables import table_row


def fuzzing(report: dict[str, Any]) -> str:
    """Inputs of each fuzz target, and what they reach."""
    hours = sum(target["seconds"] for target in report["targets"]) / 3600
    lines = [
        f"{report['inputs']:,} inputs in {hours:.1f} hours of one process, with Atheris "
        f"{report['atheris']} (`make fuzz`). Edges are the branches of this project's code "
        "that were taken; the corpus is the inputs that each take a new one.\n",
        "| target | inputs | edges | corpus | open findings |",
        "|---|---|---|---|---|",
    ]
    for each in report["targets"]:
        figures = f"{each['inputs']:,}", each["coverage"], each["corpus"], len(each["findings"])
        lines.append(table_row(f"`{each['target']}`", *figures))
    return "\n".join(lines)


def faults(report: dict[str, Any]) -> str:
    """Faults injected into each action, and what was there after them."""
    meanings = {
        "ENOSPC": "fails, disk full",
        "EIO": "fails, input or output error",
        "KILL": "killed instead",
        "SHORT": "writes a part",
        "TORN": "killed after a part",
    }
    lines = [
        f"{report['faults']:,} faults (`python -m benchmarks.faults`): each call fails with ENOSPC "
        "and with EIO, or the process is killed instead of it; a call that writes data also writes "
        "only a part of it, with the process killed then or not. A run with a fault ends with an "
        "error, is killed, or succeeds all the same; afterwards one of these is there, whole:\n",
        table_row("action", "calls", *(meanings[kind] for kind in report["kinds"]), "afterwards"),
        f"|{'---|' * (len(report['kinds']) + 3)}",
    ]
    for each in report["scenarios"]:
        states = each["states"].items()
        calls = sum(each["calls"].values())
        numbers = (each["faults"].get(kind, 0) for kind in report["kinds"])
        after = ", ".join(f"{state} {count}" for state, count in states)
        lines.append(table_row(each["scenario"], calls, *numbers, after))
    if any(each["faults"].get("EIO", 0) < each["chosen"] for each in report["scenarios"]):
        lines.append("\nAn action with fewer faults of a kind than calls has not been run whole.")
    return "\n".join(lines)


def soak(report: dict[str, Any]) -> str:
    """Memory over many images of varying sizes."""
    lines = [
        "Resident memory over images of the demo model with varying sizes and batches, one thread "
        "(`python -m benchmarks.soak`). Growth is from the first quarter of the images to the "
        "last one; with low memory each image opens its components again.\n",
        "| backend | mode | images | sizes | after a quarter | at the end | growth |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in report["memory"].values():
        sizes = (f"{each[key]:.0f} MB" for key in ("quarter_mb", "last_mb"))
        growth = f"{each['growth_mb']:+.1f} MB"
        names = each["backend"], each["mode"], each["images"], each["sizes"]
        lines.append(table_row(*names, *sizes, growth))
    return "\n".join(lines)


def concurrency(report: dict[str, Any]) -> str:
    """What readers found while others wrote."""
    lines = [
        "Files that are read while they are replaced (`python -m benchmarks.soak`). Damaged is "
        "what was no whole image, a mixture of two packages, or an error; a load gives up with an "
        "error if the package is replaced several times meanwhile.\n",
        "| while | writes | reads | damaged | gave up | left behind |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in report["concurrency"].items():
        keys = ("writes", "reads", "damaged", "gave_up", "left_over")
        figures = (f"{each.get(key, 0):,}" for key in keys)
        lines.append(table_row(name, *figures))
    return "\n".join(lines)


def interruption(report: dict[str, Any]) -> str:
    """Time from a signal to the end of the command."""
    lines = [
        "Seconds from the signal to the end of the process (`python -m benchmarks.interruption`, "
        f"up to {report['times']} times each). The longest was {report['longest_seconds']:.2f} s; "
        "none left a temporary file, and each left its terminal as it was.\n",
        "| while | Ctrl-C: median, longest | SIGTERM: median, longest |",
        "|---|---|---|",
    ]
    found: dict[str, list[str]] = {}
    for each in report["cases"]:
        figures = f"{statistics.median(each['seconds']):.2f}, {max(each['seconds']):.2f}"
        found.setdefault(each["what"], []).append(figures)
    return "\n".join([*lines, *(table_row(what, *cells) for what, cells in found.items())])
