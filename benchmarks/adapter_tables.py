"""The tables of benchmarks.lora and benchmarks.adapter_costs: what adapters cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.adapter_costs import IP, PLAIN, T2I
from benchmarks.tables import table_row
from sdexport.runtime.models.components import SAFETY_CHECKER

_ONCE = {
    "t2i_adapter": "the T2I-Adapter, once an image",
    "image_encoder": "the image encoder, once an image",
    "image_projection": "the projection, once an image",
    SAFETY_CHECKER.name: "the safety checker, once an image",
}


def lora(report: Mapping[str, Any]) -> str:
    """A row for each backend, a column for each LoRA."""
    calls = {name: each["calls"] for name, each in report["backends"].items()}
    names = [name for name in next(iter(calls.values())) if name != PLAIN]
    lines = [
        f"SD 1.5 at {report['size']}x{report['size']} with random weights: a call of the UNet with "
        "a LoRA of random factors, in processor time of one thread, compared with one without a "
        f"LoRA (`python -m benchmarks.lora`).{_load(report)}\n",
        table_row("backend", *names),
        f"|---|{'---:|' * len(names)}",
    ]
    for backend, found in calls.items():
        cells = [f"{100 * (found[name]['cpu_ratio'] - 1):+.1f} %" for name in names]
        lines.append(table_row(f"`{backend}`", *cells))
    return "\n".join(lines)


def t2i_adapter(report: Mapping[str, Any]) -> str:
    """A step with and without a T2I-Adapter, and the adapter itself."""
    return _table(report, [PLAIN, T2I], ["t2i_adapter"])


def ip_adapter(report: Mapping[str, Any]) -> str:
    """A step with and without an IP-Adapter, and what runs once."""
    return _table(report, [PLAIN, IP], ["image_encoder", "image_projection"])


def safety_checker(report: Mapping[str, Any]) -> str:
    """A step and the safety checker."""
    return _table(report, [PLAIN], [SAFETY_CHECKER.name])


def _table(report: Mapping[str, Any], steps: list[str], once: list[str]) -> str:
    lines = [
        f"SD 1.5 at {report['size']}x{report['size']} with random weights, a guided image, in "
        f"processor seconds of one thread (`python -m benchmarks.adapter_costs`).{_load(report)}\n",
        "| backend | | processor seconds | compared with a plain step |",
        "|---|---|---:|---:|",
    ]
    for backend, found in report["backends"].items():
        plain = found["steps"][PLAIN]["cpu_s"]
        rows = {f"a step, {name}": found["steps"][name] for name in steps}
        rows |= {_ONCE[name]: found["once"][name] for name in once if name in found["once"]}
        for title, call in rows.items():
            ratio = call.get("cpu_ratio", call["cpu_s"] / plain)
            lines.append(table_row(f"`{backend}`", title, f"{call['cpu_s']:.3f}", f"{ratio:.3f}"))
    return "\n".join(lines)


def _load(report: Mapping[str, Any]) -> str:
    """A sentence if the machine did other work during the measurement."""
    load, threads = report.get("load"), report["threads"]
    if load is None or load < threads + 0.5:
        return ""
    return f" Measured while the machine did other work (load {load:.0f})."
