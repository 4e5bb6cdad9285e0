"""The report of `sdexport bench` as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdexport.engines.printable_text import escaped


def table(report: Mapping[str, Any]) -> str:
    """The report of `bench` as aligned text, with a row for each backend.

    The last column is the largest relative error compared with PyTorch's reference outputs.
    """
    rows_of, work = report["backends"], report["work"]
    names = component_names(rows_of)
    head = ["backend", "open s", *(f"{name} ms" for name in names), "image s", "peak MB"]
    rows, notes = [[*head, "vs PyTorch"]], []
    for label, row in rows_of.items():
        if "error" in row:
            notes.append(f"{label}: {row['error']}")
            continue
        opened = sum(part["open_s"] for part in row["components"].values())
        cells = [label, f"{opened:.2f}"]
        cells += [_shown(row["components"].get(name, {}), 1000, "{:.1f}") for name in names]
        cells += [_shown(row["image"], 1, "{:.3f}"), f"{row['image'].get('peak_mb') or '-'}"]
        rows.append([*cells, _verdict(row["check"])])
        errors = {**row["components"], "image": row["image"]}
        notes += [f"{label}: {n}: {e['error']}" for n, e in errors.items() if "error" in e]
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    title = (
        f"{report['package']}: {work['width']}x{work['height']}, batch {work['batch']}, "
        f"{work['num_inference_steps']} steps; medians of {work['repeats']} after a warm-up"
    )
    return "\n".join([escaped(title), "", *lines, *map(escaped, notes)])


def component_names(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The components that were opened, from the first backend that opened them."""
    return list(next((row["components"] for row in rows.values() if row.get("opened")), ()))


def _shown(measured: Mapping[str, Any], factor: float, form: str) -> str:
    return form.format(measured["median_s"] * factor) if "median_s" in measured else "-"


def _verdict(check: Mapping[str, Any]) -> str:
    if check["passed"] is None:
        return "no reference"
    measures = [measure for c in check["checks"] for measure in c["measures"]]
    errors = [m["value"] for m in measures if m["kind"] == "max_abs" and m["value"]]
    worst = f"{max(errors):.1e}" if errors else "-"
    return f"ok {worst}" if check["passed"] else f"differs {worst}"
