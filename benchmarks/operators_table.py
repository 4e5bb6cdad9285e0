"""The tables of benchmarks.operators: seconds and rate of each kind of operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import table_row


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """A table for each model and size that was measured."""
    return "\n\n".join(_of_report(report) for report in reports)


def _of_report(report: Mapping[str, Any]) -> str:
    limit, (width, height) = report["limits"]["bf16_flops"], report["size"]
    machine = report["machine"]
    lines = [
        f"{report['model']}, {width}x{height}, bf16 on OpenVINO, {machine['cores']} cores (family "
        f"{machine['cpu_family']}). The limit is the fastest matrix product in bf16 of the same "
        f"run, {limit / 1e9:.0f} GFLOP/s.\n",
        table_row("", "ms of a call", "share", "GFLOP", "of the limit"),
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in report["components"].items():
        whole = found["limit_s"] / found["call_s"]
        lines.append(
            table_row(
                f"**{name}**",
                f"**{1000 * found['call_s']:.0f}**",
                "",
                f"{found['flops'] / 1e9:.0f}",
                f"{whole:.0%}",
            )
        )
        for kind, row in found["kinds"].items():
            rate = f"{row['of_limit']:.0%}" if "of_limit" in row else ""
            work = f"{row['flops'] / 1e9:.0f}" if row["flops"] else ""
            milliseconds = f"{1000 * row['seconds']:.0f}"
            lines.append(table_row(kind, milliseconds, f"{row['share']:.0%}", work, rate))
    return "\n".join(lines)
