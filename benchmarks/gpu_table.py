"""The table of a report of `benchmarks.gpu`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_goals import lines as goal_lines

Tasks = dict[str, dict[str, Any]]
Show = Callable[[dict[str, Any]], str]


def table(report: dict[str, Any]) -> str:
    """For each model: calls, images, host's share and memory of each contender that ran."""
    machine = report["tasks"]["environment"]
    name = report.get("dry_run") or machine["gpu"].get("name", "no GPU")
    known = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    lines = [f"On {name} (`python -m benchmarks.gpu`; random weights; {known}):"]
    for model in dict.fromkeys(key.split(".")[0] for key in report["tasks"] if "." in key):
        measured = {
            key.removeprefix(f"{model}."): task
            for key, task in report["tasks"].items()
            if key.startswith(f"{model}.") and any("image." in row for row in task)
        }
        if measured:
            lines += _of_model(model, measured)
    return "\n".join([*lines, "", *(f"- {line}" for line in goal_lines(report["goals"]))])


def _of_model(model: str, tasks: Tasks) -> list[str]:
    """A column for each contender."""
    lines = [f"\n{model}:\n", _row("", *tasks), f"|{'---|' * (len(tasks) + 1)}"]
    for name in dict.fromkeys(row for task in tasks.values() for row in task):
        if name.startswith("image."):
            title = f"image of {name.removeprefix('image.')} steps, s"
            lines.append(_row(title, *_cells(tasks, name, "seconds", _seconds)))
        elif any("host" in task[name] for task in tasks.values() if _is_row(task.get(name))):
            lines.append(_row(f"{name}, ms", *_cells(tasks, name, "host", _milliseconds)))
    lines.append(_row("host's share of an image", *_cells(tasks, "profile", "host_share", _share)))
    sizes = (task.get("device_bytes") for task in tasks.values())
    lines.append(_row("memory, GB", *("-" if s is None else f"{s / 1e9:.1f}" for s in sizes)))
    return lines


def _cells(tasks: Tasks, name: str, measured: str, show: Show) -> list[str]:
    rows = [task.get(name, {}) for task in tasks.values()]
    return [show(row) if _is_row(row) and measured in row else "-" for row in rows]


def _is_row(value: object) -> bool:
    return isinstance(value, dict)


def _seconds(row: dict[str, Any]) -> str:
    return f"{statistics.median(row['seconds']):.3g}"


def _milliseconds(row: dict[str, Any]) -> str:
    return f"{float(row.get('events', row['host'])['median_us']) / 1000:.3g}"


def _share(row: dict[str, Any]) -> str:
    return "-" if row["host_share"] is None else f"{row['host_share']:.1%}"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
