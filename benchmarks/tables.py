"""Markdown tables of the reports of latency, memory and roofline; see docs_tables.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = list[tuple[str, dict[str, Any]]]


def reports(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Reports of one kind (latency, memory, roofline), sorted by file name."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{kind}-*"))
    ]


def name_of(report: Mapping[str, Any]) -> str:
    """Name of a latency report, for file names."""
    return f"{report['model']}-{report['size'][0]}{'-compiled' if report.get('slow') else ''}"


def rows_of(report: Mapping[str, Any]) -> Rows:
    """Each contender once: the reference is repeated in every group."""
    found: dict[str, dict[str, Any]] = {}
    for group in report["groups"]:
        for name, row in group.items():
            found.setdefault(name, row)
    return list(found.items())


def ratio(report: Mapping[str, Any], name: str, other: str, case: str) -> float | None:
    """How many times faster `name` is than `other`.

    Compared directly where both are in one group, else through a reference that both groups have.
    """

    def against_references(wanted: str) -> dict[str, float]:
        found = {}
        for group in report["groups"]:
            reference = next(iter(group))
            figures = [group.get(n, {}).get("cases", {}).get(case, {}) for n in (wanted, reference)]
            if all("median_s" in f for f in figures):
                found[reference] = float(figures[1]["median_s"] / figures[0]["median_s"])
        return found

    for group in report["groups"]:
        figures = [group.get(n, {}).get("cases", {}).get(case, {}) for n in (name, other)]
        if all("median_s" in f for f in figures):
            return float(figures[1]["median_s"] / figures[0]["median_s"])
    one, two = against_references(name), against_references(other)
    return next((one[common] / two[common] for common in one if common in two), None)


def latency(report: Mapping[str, Any]) -> str:
    """Medians with 20th and 80th percentiles, and what could not be timed."""
    rows = rows_of(report)
    cases = list(dict.fromkeys(case for _, row in rows for case in row["cases"]))
    lines = [
        f"{_title(report)}, batch 1 with guidance, rounds: {_rounds(rows)}; "
        f"seconds, median (p20 to p80); an image takes {report['num_inference_steps']} steps.\n",
        table_row("", *("image" if case == "picture" else case for case in cases)),
        "|---|" + "---:|" * len(cases),
    ]
    notes = []
    for name, row in rows:
        if "error" in row:
            notes.append(f"- {name}: {row['error']}")
            continue
        lines.append(table_row(name, *(_seconds(row["cases"].get(case, {})) for case in cases)))
        notes += [f"- {name}, {c}: {f['error']}" for c, f in row["cases"].items() if "error" in f]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _rounds(rows: Rows) -> str:
    """How many rounds were run; a slow machine runs fewer."""
    taken = {
        len(figures["samples_s"])
        for _, row in rows
        for figures in row["cases"].values()
        if "samples_s" in figures
    }
    return " to ".join(str(count) for count in sorted({min(taken), max(taken)})) if taken else "0"


def memory(found: Sequence[Mapping[str, Any]]) -> str:
    """Peak memory of one image in a fresh process."""
    titles = [_title(r) for r in found]
    names = list(dict.fromkeys(name for report in found for name in report["rows"]))
    lines = [
        "Peak memory of a fresh process that generates one image, in GB.\n",
        table_row("", *titles),
    ]
    lines.append("|---|" + "---:|" * len(titles))
    for name in names:
        lines.append(table_row(name, *(_gigabytes(r["rows"].get(name, {})) for r in found)))
    return "\n".join([*lines, "", *_of_optimum(found)])


def _of_optimum(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The goal: at most 0.7 of Optimum's peak memory, in the same precision."""
    for report in found:
        theirs = _peak_mb(report["rows"].get("optimum fp32", {}))
        ours = {
            name: peak
            for name, row in report["rows"].items()
            if name.startswith("sdexport onnxruntime fp32") and (peak := _peak_mb(row))
        }
        if theirs and ours:
            shares = ", ".join(f"{name} {peak / theirs:.2f}" for name, peak in ours.items())
            size = report["size"]
            yield (
                f"As a share of Optimum's at {size[0]}x{size[1]} (goal: at most 0.7): {shares}.\n"
            )


def roofline(report: Mapping[str, Any]) -> str:
    """Operations and weights of each component, and the share of the machine's limit reached."""
    limit, parts = report["limits"], report["components"]
    width, height = report["size"]
    lines = [
        f"{report['model']}, {width}x{height}: share of the machine's limit. Measured limits: "
        f"{limit['fp32_flops'] / 1e9:.0f} GFLOP/s in fp32, {limit['bf16_flops'] / 1e9:.0f} in "
        f"bf16, memory copies {limit['copy_bytes'] / 1e9:.0f} GB/s.\n",
        table_row("", *parts),
        "|---|" + "---:|" * len(parts),
        table_row("GFLOP", *(f"{p['flops'] / 1e9:.1f}" for p in parts.values())),
        table_row("weights, MB", *(f"{p['weight_bytes'] / 1e6:.0f}" for p in parts.values())),
    ]
    for name, shares in report.get("shares", {}).items():
        lines.append(table_row(name, *(_share(shares.get(part)) for part in parts)))
    return "\n".join(lines)


PREPARED = "sdexport onnxruntime fp32 prepared"
EXACT = ("sdexport onnxruntime fp32", PREPARED, "sdexport openvino fp32")
TARGETS = (
    ("sdexport fp32 / diffusers fp32", EXACT, ("diffusers fp32",), 2.2),
    ("sdexport fp32 / Optimum fp32", EXACT, ("optimum fp32",), 1.1),
    ("sdexport fp32, prepared graphs and low memory / Optimum fp32", (PREPARED,),
     ("optimum fp32",), 1.1),
    ("sdexport bf16 / diffusers bf16", ("sdexport openvino bf16",), ("diffusers bf16",), 1.7),
    ("sdexport bf16 / diffusers bf16 in channels_last", ("sdexport openvino bf16",),
     ("diffusers bf16 channels_last",), 1.7),
    ("sdexport i8 / the faster diffusers bf16", ("sdexport openvino i8",),
     ("diffusers bf16", "diffusers bf16 channels_last"), 1.7),
    ("sdexport fp32 / OpenVINO GenAI fp32", EXACT, ("openvino-genai fp32",), 1.0),
    ("sdexport bf16 / OpenVINO GenAI bf16", ("sdexport openvino bf16",),
     ("openvino-genai bf16",), 1.0),
)  # fmt: skip
"""Title, contenders of sdexport, other contenders, and the speed-up that is the goal: the fastest
of the first against the fastest of the second."""


def targets(found: Sequence[Mapping[str, Any]]) -> str:
    """The speed-ups that are goals of the project, and those measured, for whole images."""
    found = [report for report in found if _is_standard(report)]
    titles = [_title(r) for r in found]
    lines = [
        table_row("speed-up, whole images", "goal", *titles),
        "|---|---:|" + "---:|" * len(titles),
    ]
    for title, ours, theirs, goal in TARGETS:
        cells = []
        for report in found:
            best = [
                min(filter(None, (ratio(report, our, their, "picture") for their in theirs)),
                    default=None)
                for our in ours
            ]  # fmt: skip
            known = [value for value in best if value is not None]
            cells.append(f"{max(known):.2f}" if known else "-")
        lines.append(table_row(title, f"{goal:g}", *cells))
    return "\n".join(lines)


def figures(folder: Path) -> str:
    """Every table of latency, memory and roofline that there are reports for."""
    found = [latency(report) for report in reports(folder, "latency")]
    if peaks := reports(folder, "memory"):
        found.append(memory(peaks))
    found += [roofline(report) for report in reports(folder, "roofline")]
    return "\n\n".join(text.strip() for text in found)


def _is_standard(report: Mapping[str, Any]) -> bool:
    """Whether whole images of all the usual contenders were timed."""
    has_images = any("picture" in row["cases"] for _, row in rows_of(report))
    return has_images and not report.get("slow")


def _title(report: Mapping[str, Any]) -> str:
    """Such as "sd15 256x256"; ", compiled" where a report has the compiled ones too."""
    width, height = report["size"]
    model = "demo model" if report["model"] == "embedded" else report["model"]
    return f"{model} {width}x{height}{', compiled' if report.get('slow') else ''}"


def table_row(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def _seconds(figures: Mapping[str, Any]) -> str:
    if "median_s" not in figures:
        return "-"
    return f"{figures['median_s']:.3g} ({figures['p20_s']:.3g} to {figures['p80_s']:.3g})"


def _peak_mb(row: Mapping[str, Any]) -> float | None:
    figures = (value for value in row.values() if isinstance(value, dict))
    return max((f["peak_mb"] for f in figures if f.get("peak_mb")), default=None)


def _gigabytes(row: Mapping[str, Any]) -> str:
    peak = _peak_mb(row)
    return str(row.get("error", "-"))[:60] if peak is None else f"{peak / 1000:.2f}"


def _share(figures: Mapping[str, float] | None) -> str:
    return "-" if figures is None else f"{figures['share']:.0%}"
