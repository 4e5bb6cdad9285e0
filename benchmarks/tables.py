"""Markdown tables of the harness' reports, for README and docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = list[tuple[str, dict[str, Any]]]


def reports(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Reports of a kind (latency, memory, roofline), in order of their names."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{kind}-*"))
    ]


def name_of(report: Mapping[str, Any]) -> str:
    """What sets a report of latencies apart, for names of files."""
    return f"{report['model']}-{report['size'][0]}{'-compiled' if report.get('slow') else ''}"


def rows_of(report: Mapping[str, Any]) -> Rows:
    """Each contender once, the reference of later groups left out."""
    found: dict[str, dict[str, Any]] = {}
    for group in report["groups"]:
        for name, row in group.items():
            found.setdefault(name, row)
    return list(found.items())


def ratio(report: Mapping[str, Any], name: str, other: str, case: str) -> float | None:
    """How many times faster `name` is than `other`: in their group, or by way of a reference that
    the groups of both have.
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
    """Medians with their 20th and 80th percentiles, and what could not be timed."""
    rows = rows_of(report)
    cases = list(dict.fromkeys(case for _, row in rows for case in row["cases"]))
    lines = [
        f"{_title(report)}, batch 1 with guidance, rounds: {_rounds(rows)}; "
        f"seconds, median (p20 to p80); a picture has {report['num_inference_steps']} steps:\n",
        _row("", *cases),
        "|---|" + "---:|" * len(cases),
    ]
    notes = []
    for name, row in rows:
        if "error" in row:
            notes.append(f"- {name}: {row['error']}")
            continue
        lines.append(_row(name, *(_seconds(row["cases"].get(case, {})) for case in cases)))
        notes += [f"- {name}, {c}: {f['error']}" for c, f in row["cases"].items() if "error" in f]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _rounds(rows: Rows) -> str:
    """How many there were; a machine that is slow takes fewer."""
    taken = {
        len(figures["samples_s"])
        for _, row in rows
        for figures in row["cases"].values()
        if "samples_s" in figures
    }
    return " to ".join(str(count) for count in sorted({min(taken), max(taken)})) if taken else "0"


def memory(found: Sequence[Mapping[str, Any]]) -> str:
    """Peak memory of one picture in a fresh process."""
    titles = [_title(r) for r in found]
    names = list(dict.fromkeys(name for report in found for name in report["rows"]))
    lines = ["Peak memory of a fresh process, GB:\n", _row("", *titles)]
    lines.append("|---|" + "---:|" * len(titles))
    for name in names:
        lines.append(_row(name, *(_gigabytes(r["rows"].get(name, {})) for r in found)))
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
            yield f"Of Optimum's, at {size[0]}x{size[1]} (goal: 0.7 at most): {shares}.\n"


def roofline(report: Mapping[str, Any]) -> str:
    """What was counted, and the share of the machine's limits that each contender reached."""
    limit, parts = report["limits"], report["components"]
    width, height = report["size"]
    lines = [
        f"{report['model']}, {width}x{height}. This machine: {limit['fp32_flops'] / 1e9:.0f} "
        f"GFLOP/s fp32, {limit['bf16_flops'] / 1e9:.0f} bf16, copies "
        f"{limit['copy_bytes'] / 1e9:.0f} GB/s. Share of the roof:\n",
        _row("", *parts),
        "|---|" + "---:|" * len(parts),
        _row("GFLOP", *(f"{p['flops'] / 1e9:.1f}" for p in parts.values())),
        _row("weights, MB", *(f"{p['weight_bytes'] / 1e6:.0f}" for p in parts.values())),
    ]
    for name, shares in report.get("shares", {}).items():
        lines.append(_row(name, *(_share(shares.get(part)) for part in parts)))
    return "\n".join(lines)


PREPARED = "sdexport onnxruntime fp32 prepared"
EXACT = ("sdexport onnxruntime fp32", PREPARED, "sdexport openvino fp32")
TARGETS = (
    ("ours fp32 against diffusers fp32", EXACT, ("diffusers fp32",), 2.2),
    ("ours against Optimum, fp32", EXACT, ("optimum fp32",), 1.1),
    ("ours prepared, with less memory, against Optimum, fp32", (PREPARED,), ("optimum fp32",), 1.1),
    ("ours bf16 against diffusers bf16", ("sdexport openvino bf16",), ("diffusers bf16",), 1.7),
    ("the same, diffusers in channels_last", ("sdexport openvino bf16",),
     ("diffusers bf16 channels_last",), 1.7),
    ("ours fastest, 8 bits, against diffusers' best bf16", ("sdexport openvino i8",),
     ("diffusers bf16", "diffusers bf16 channels_last"), 1.7),
    ("ours against OpenVINO GenAI, fp32", EXACT, ("openvino-genai fp32",), 1.0),
    ("ours against OpenVINO GenAI, bf16", ("sdexport openvino bf16",),
     ("openvino-genai bf16",), 1.0),
)  # fmt: skip
"""What must be so many times faster: the best of ours against the best of the others."""


def targets(found: Sequence[Mapping[str, Any]]) -> str:
    """The goals of the project and what the reports say of them, for whole pictures."""
    found = [report for report in found if _is_standard(report)]
    titles = [_title(r) for r in found]
    lines = [
        _row("times faster, whole pictures", "goal", *titles),
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
        lines.append(_row(title, f"{goal:g}", *cells))
    return "\n".join(lines)


def document(folder: Path) -> str:
    """Every table that there are reports for."""
    return "\n\n".join(_tables(folder))


def _tables(folder: Path) -> Iterator[str]:
    timed = reports(folder, "latency")
    if any(map(_is_standard, timed)):
        yield targets(timed)
    yield from map(latency, timed)
    if found := reports(folder, "memory"):
        yield memory(found)
    yield from map(roofline, reports(folder, "roofline"))


def _is_standard(report: Mapping[str, Any]) -> bool:
    """Whether whole pictures of all the usual contenders were timed."""
    pictures = any("picture" in row["cases"] for _, row in rows_of(report))
    return pictures and not report.get("slow")


def _title(report: Mapping[str, Any]) -> str:
    """Such as "sd15 256x256"; ", compiled" where a report has the compiled ones too."""
    width, height = report["size"]
    return f"{report['model']} {width}x{height}{', compiled' if report.get('slow') else ''}"


def _row(*cells: object) -> str:
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
