"""Goals of the GPU benchmark, and whether a report reaches them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_names import CONTENDERS, TORCHES

HOST_SHARE = 0.03
COSINE = 0.999
"""Lowest cosine of an output (float16 inside) to PyTorch's in float32; below it no time counts."""


@dataclass(frozen=True)
class Goal:
    """Seconds of an image. published: of others, on the same kind of GPU."""

    model: str
    steps: int
    seconds: float
    published: Mapping[str, float]


GOALS = (
    Goal("sd15", 50, 0.55, {"ONNX Runtime": 0.57, "torch.compile": 0.83}),
    Goal("sdxl", 30, 1.6, {}),
)
GPUS = ("H100", "H200")
"""The goals are for these; on another GPU they are only reported."""


def goals(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each goal the fastest correct image of ours and of PyTorch's, and whether it is reached.

    `reached` is None where nothing was measured, where the GPU is another one, or in a dry run.
    """
    name = report["tasks"].get("environment", {}).get("gpu", {}).get("name", "")
    counts = not report.get("dry_run") and any(gpu in name for gpu in GPUS)
    return [row for goal in GOALS for row in _rows(goal, report["tasks"], counts=counts)]


def _rows(goal: Goal, tasks: Mapping[str, Any], *, counts: bool) -> list[dict[str, Any]]:
    found = {c: _image(tasks.get(f"{goal.model}.{c}", {}), goal.steps) for c in CONTENDERS}
    measured = {c: row for c, row in found.items() if row is not None}
    ours = _fastest({c: row for c, row in measured.items() if c not in TORCHES})
    theirs = _fastest({c: row for c, row in measured.items() if c in TORCHES})
    what = f"{goal.model}: image of {goal.steps} steps, s"
    share = None if ours is None else measured[ours[0]].get("host_share")
    return [
        {
            "goal": what,
            "at_most": goal.seconds,
            "published": dict(goal.published),
            "ours": ours,
            "torch": theirs,
            "reached": ours[1] <= goal.seconds if ours and counts else None,
        },
        {
            "goal": f"{goal.model}: host's share of an image outside the device",
            "at_most": HOST_SHARE,
            "ours": None if ours is None or share is None else (ours[0], share),
            "reached": share <= HOST_SHARE if share is not None and counts else None,
        },
    ]


def _image(task: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """The median seconds of a task's images and its host share, if its outputs are correct."""
    image = task.get(f"image.{steps}", {})
    wrong = [
        name
        for name, row in task.items()
        if isinstance(row, dict) and not row.get("to_fp32", {}).get("cosine", 1.0) >= COSINE
    ]
    if "seconds" not in image or wrong:
        return None
    return {
        "seconds": statistics.median(image["seconds"]),
        "host_share": task.get("profile", {}).get("host_share"),
    }


def _fastest(rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, float] | None:
    return min(((c, row["seconds"]) for c, row in rows.items()), key=lambda r: r[1], default=None)


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The goals as text, one line each."""
    words = {True: "reached", False: "not reached", None: "not measured on an H100 or H200"}
    found = []
    for row in rows:
        ours, theirs = row["ours"], row.get("torch")
        measured = f"{ours[1]:.3g} with {ours[0]}" if ours else "-"
        other = f"; PyTorch {theirs[1]:.3g} with {theirs[0]}" if theirs else ""
        found.append(
            f"{row['goal']}: {measured}, goal {row['at_most']:g}: {words[row['reached']]}{other}"
        )
    return found
