"""The table of benchmarks.startup: seconds to the first images, and memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.startup_programs import PROGRAMS, REFERENCE, Program
from benchmarks.tables import table_row

TITLES = {"sd15": "SD 1.5 (random weights)", "demo": "The demo model"}
ZEN = {"25": "Zen 4", "26": "Zen 5"}
"""AMD's families of processors that have bf16."""
DEMO_GOAL = 0.25
"""Of diffusers' time: the demo model's first image, whatever the backend in fp32."""
QUIET = 0.1
"""Cores that other processes may use before the table says so."""
Rows = Sequence[Mapping[str, Any]]


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """A table for each model that was measured, and each kind of processor."""
    found = [(name, r["models"][name]) for name in TITLES for r in reports if name in r["models"]]
    return "\n\n".join(_of_model(name, each) for name, each in found)


def slug(machine: Mapping[str, Any]) -> str:
    """The kind of processor, for names of files."""
    return f"family{machine.get('cpu_family', '')}"


def plot_of(model: str, found: Mapping[str, Any]) -> str:
    """File name of the plot."""
    return f"first-image-{model}-{slug(found['machine'])}.png"


def first_image(rows: Rows, name: str, process: str, files: str) -> float | None:
    """Median seconds to the first image; None if it was not measured."""
    return _median(_rows(rows, name, process, files), 0)


def _of_model(model: str, found: Mapping[str, Any]) -> str:
    rows, (width, height) = found["rows"], found["size"]
    lines = [
        f"{TITLES[model]}, {width}x{height}, {found['num_inference_steps']} steps, guidance, two "
        f"images, {cores(found['machine'])}; seconds from the start of the process.\n",
        table_row(
            *("", "process", "first image", "second", "first, of diffusers'", "goal"),
            *("first, cold files", "peak memory, GB", "private", "mapped files"),
        ),
        "|---|---|" + "---:|" * 8,
    ]
    for program in PROGRAMS.values():
        for process in program.processes:
            if any(_rows(rows, program.name, process, "warm")):
                lines.append(_row(model, program, process, rows))
    plot = f"![Seconds to the first image](benchmarks/{plot_of(model, found)})"
    return "\n".join([*lines, "", *_notes(rows), "", plot])


def cores(machine: Mapping[str, Any]) -> str:
    """How many cores of which kind a machine has."""
    has_bf16 = "avx512_bf16" in machine["cpu_flags"]
    kind = f"{ZEN[machine['cpu_family']]} " if has_bf16 and machine["cpu_family"] in ZEN else ""
    return f"{machine['cores']} {kind}cores"


def _row(model: str, program: Program, process: str, rows: Rows) -> str:
    warm = _rows(rows, program.name, process, "warm")
    cold = _median(_rows(rows, program.name, process, "cold"), 0)
    goal = goal_of(model, program, process)
    share = share_of(rows, program, process)
    shown = "-" if share is None else f"{share:.2f}"
    if goal is not None and share is not None:
        shown = f"**{shown}**" if share <= goal else shown
    memory = [max((r["memory_mb"][k] for r in warm if "memory_mb" in r), default=None) for k in _MB]
    return table_row(
        program.name,
        process if program.keeps else "any",
        *(_seconds(_median(warm, place)) for place in (0, 1)),
        shown,
        "" if goal is None else f"{goal:g}",
        _seconds(cold),
        *("-" if value is None else f"{value / 1000:.2f}" for value in memory),
    )


_MB = ("peak_mb", "private_mb", "mapped_mb")


def goal_of(model: str, program: Program, process: str) -> float | None:
    """The largest share of diffusers' time that is wanted."""
    if not program.goal:
        return None
    if model == "demo":
        return DEMO_GOAL if program.precision == "fp32" else None
    return program.goal.get(process)


def share_of(rows: Rows, program: Program, process: str) -> float | None:
    """Seconds to the first image over those of diffusers in the same run, with warm files."""
    warm = _rows(rows, program.name, process, "warm")
    if program.library == REFERENCE.library or not warm:
        return None
    other = _rows(rows, program.against, "first", "warm")
    ours = _median(warm, 0)
    theirs = _median([row for row in other if row["run"] == warm[-1]["run"]], 0)
    return None if ours is None or theirs is None else ours / theirs


def _notes(rows: Rows) -> list[str]:
    notes = dict.fromkeys(f"- {r['name']}: {r['error']}" for r in rows if "error" in r)
    differ = dict.fromkeys(
        f"- {row['name']}: its rounding gives another image (mean difference "
        f"{max(c['mean'] for c in row['check']):.0f} of 255)"
        for row in rows
        if row["files"] == "warm" and not all(c["passed"] for c in row.get("check", []))
    )
    busy = max((row["others_cores"] for row in rows if "others_cores" in row), default=0.0)
    loaded = [f"- Other processes used up to {busy:.1f} cores meanwhile."] if busy > QUIET else []
    return [*notes, *differ, *loaded]


def _rows(rows: Rows, name: str, process: str, files: str) -> Rows:
    wanted = {"name": name, "process": process, "files": files}
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _median(rows: Rows, place: int) -> float | None:
    values = [row["images_s"][place] for row in rows if "images_s" in row]
    return statistics.median(values) if values else None


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
