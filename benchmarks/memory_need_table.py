"""The table of benchmarks.memory_need: peaks of one image, next to the goals and the estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import table_row

_MODELS = {
    "stable-diffusion": "SD 1.5",
    "stable-diffusion-xl": "SDXL",
    "stable-diffusion-xl-refiner": "SDXL refiner",
}
GOALS = {
    ("SD 1.5", "fp32", "openvino"): 6.0,
    ("SD 1.5", "fp32", "openvino,precision=bf16"): 3.8,
    ("SD 1.5", "fp32", "openvino,precision=i8"): 3.0,
    ("SD 1.5", "fp32", "onnxruntime"): 4.0,
    ("SD 1.5", "fp32", "onnxruntime, prepared"): 3.7,
    ("SD 1.5", "fp16", "onnxruntime"): 3.5,
    ("SDXL", "fp16", "openvino,precision=bf16"): 9.0,
}
"""GB of one image of 256x256."""
SIZE = 256


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each command that was measured."""
    lines = [
        "GB that are resident at most, in a new process, two steps, random weights; bold where "
        "the goal is met (`python -m benchmarks.memory_need`). The user's cache is off.\n",
        "| model, package | command | backend | size | peak | goal | estimate |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        model = _MODELS.get(row["family"], row["family"])
        precision = row["precision"]["unet"]
        backend = row["backend"] + (", prepared" if row.get("prepared") else "")
        if row.get("build_precision"):
            backend += f",precision={row['build_precision']}"
        command = row["command"] + (" --low-memory" if row["low_memory"] else "")
        is_plain = command == "generate" and row["size"] == SIZE
        goal = GOALS.get((model, precision, backend)) if is_plain else None
        peak = f"{row['peak_gb']:.2f}"
        estimate = row.get("estimate_gb")
        lines.append(
            table_row(
                f"{model}, {precision}",
                command,
                backend,
                row["size"] if row["command"] == "generate" else "",
                f"**{peak}**" if goal is not None and row["peak_gb"] <= goal else peak,
                "" if goal is None else f"{goal:g}",
                "" if estimate is None else f"{estimate:.2f}",
            )
        )
    return "\n".join(lines)
