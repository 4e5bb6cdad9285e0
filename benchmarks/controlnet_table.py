"""The table of benchmarks.controlnet: what a step of the UNet costs with a ControlNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tables import table_row


def table(report: Mapping[str, Any]) -> str:
    """A row for each backend and call."""
    lines = [
        f"SD 1.5 at {report['size']}x{report['size']} with random weights, both halves of a guided "
        "image: a call of the UNet, in processor seconds of one thread, and next to that of the "
        "plain graph (`python -m benchmarks.controlnet`).\n",
        "| backend | step | processor seconds | ratio |",
        "|---|---|---:|---:|",
    ]
    for backend, calls in report["backends"].items():
        for name, call in calls.items():
            lines.append(
                table_row(f"`{backend}`", name, f"{call['cpu_s']:.2f}", f"{call['cpu_ratio']:.3f}")
            )
    return "\n".join(lines)
