"""The tables of benchmarks.plans and benchmarks.full_size_plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.tables import table_row

COLUMNS = (
    *("fp16, opset 23", "fp16, opset 18", "bf16, opset 23"),
    *("fp32, opset 23", "int8, opset 23"),
)
MODELS = {"sd15": "SD 1.5", "sdxl": "SDXL"}


def small(report: Mapping[str, Any]) -> str:
    """For each family how many graphs were built, and how much attention became one kernel."""
    lines = [
        f"{report['library']} on a CPU, for {_listed(report['capabilities'])}: small random models "
        "of every family (`python -m benchmarks.plans`). Attention in one kernel, of all in the "
        "graphs of the family, for fixed sizes.\n",
        table_row("family", "graphs built", *COLUMNS),
        "|---|---:|" + "---:|" * len(COLUMNS),
    ]
    reasons: Counter[str] = Counter()
    for family, found in report["families"].items():
        graphs = [graph for graphs in found.values() for graph in graphs.values()]
        built = [graph for graph in graphs if "failed" not in graph]
        shares = (_share(found.get(column, {}).values()) for column in COLUMNS)
        lines.append(table_row(family, f"{len(built)} of {len(graphs)}", *shares))
        for graph in built:
            reasons.update(graph["profiles"][0]["reasons"])
    return "\n".join([*lines, "", "Why the others did not:\n", *_reasons(reasons)])


def full_size(reports: Sequence[Mapping[str, Any]]) -> str:
    """Time, memory and size of the engines of full-size models, and what their layers do."""
    lines = [
        f"{reports[0]['library']} on a CPU: published architectures with seeded random weights in "
        "fp16 (`python -m benchmarks.full_size_plans`). Each engine has a profile for one size and "
        "one for a range; figures of layers are of the first and the second one.\n",
        table_row(
            *("", "CPU time", "peak memory", "weights", "engine", "layers"),
            *("that reformat", "attention in one kernel"),
        ),
        "|---|" + "---:|" * 7,
    ]
    reasons: Counter[str] = Counter()
    for report in reports:
        sizes = report["arguments"]
        note = ", weights streamed" if "--weight-streaming" in sizes else ""
        for component, found in report["components"].items():
            profiles = found["profiles"]
            lines.append(
                table_row(
                    f"{MODELS[report['model']]} {component}, {sizes[1]} pixels{note}",
                    f"{found['cpu_seconds']:.0f} s",
                    f"{found['peak_gb']:.1f} GB",
                    f"{found['graph_bytes'] / 1e9:.2f} GB",
                    f"{found['bytes'] / 1e9:.2f} GB",
                    ", ".join(str(profile["layers"]) for profile in profiles),
                    ", ".join(str(profile["reformatting"]) for profile in profiles),
                    ", ".join(f"{p['fused']} of {p['total']}" for p in profiles),
                )
            )
            reasons.update(profiles[0]["reasons"])
    return "\n".join([*lines, "", "Why the others did not:\n", *_reasons(reasons)])


def _share(graphs: Iterable[Mapping[str, Any]]) -> str:
    profiles = [graph["profiles"][0] for graph in graphs if "profiles" in graph]
    return f"{sum(p['fused'] for p in profiles)} of {sum(p['total'] for p in profiles)}"


def _reasons(reasons: Counter[str]) -> Iterator[str]:
    for reason, count in reasons.most_common():
        yield f"- {count}: {reason}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
