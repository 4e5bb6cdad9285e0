"""Plots of the reports as PNG files in docs/benchmarks: `python -m benchmarks.plots`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import startup_table
from benchmarks.arguments import RESULTS
from benchmarks.contenders import OURS
from benchmarks.startup_programs import PROGRAMS
from benchmarks.tables import name_of, reports, rows_of

PLOTS = Path(__file__).parents[1] / "docs" / "benchmarks"


def image_times(report: dict[str, Any], path: Path) -> bool:
    """Bars of the time for a whole image, ours in another colour; False if none was timed."""
    timed = [
        (name, row["cases"]["picture"])
        for name, row in rows_of(report)
        if "median_s" in row["cases"].get("picture", {})
    ]
    if not timed:
        return False
    figure, axes = _figure(0.4 * len(timed) + 1.2)
    for place, (name, figures) in enumerate(reversed(timed)):
        low, middle, high = (figures[key] for key in ("p20_s", "median_s", "p80_s"))
        colour = "tab:blue" if name.startswith("sdexport") else "tab:gray"
        axes.barh(place, middle, xerr=[[middle - low], [high - middle]], color=colour)
    axes.set_yticks(range(len(timed)), [name for name, _ in reversed(timed)])
    width, height = report["size"]
    steps = report["num_inference_steps"]
    axes.set_xlabel(f"seconds: {report['model']}, {width}x{height}, {steps} steps")
    figure.savefig(path, metadata={"Software": None})
    return True


def first_images(rows: startup_table.Rows, path: Path, title: str) -> bool:
    """Bars of the time to the first image with warm files and with cold ones."""
    found = [
        (program, process, seconds)
        for program in PROGRAMS.values()
        for process in program.processes
        if (seconds := startup_table.first_image(rows, program.name, process, "warm")) is not None
    ]
    if not found:
        return False
    figure, axes = _figure(0.3 * len(found) + 1.2)
    names = []
    for place, (program, process, seconds) in enumerate(reversed(found)):
        colour = "tab:blue" if program.library == OURS else "tab:gray"
        cold = startup_table.first_image(rows, program.name, process, "cold")
        if cold is not None:
            axes.barh(place, cold, color=colour, alpha=0.35)
        axes.barh(place, seconds, color=colour)
        names.append(f"{program.name}, {process} process" if program.keeps else program.name)
    axes.set_yticks(range(len(found)), names)
    axes.set_xlabel(f"seconds to the first image (pale: cold files)\n{title}")
    figure.savefig(path, metadata={"Software": None})
    return True


def growth(report: dict[str, Any], path: Path) -> None:
    """Time against the size of each sweep, outside the engines and with ONNX Runtime."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * 2), dpi=100, layout="tight")
    axes = figure.subplots(2, 2).ravel()
    for axis, name in zip(axes, report["outside"], strict=True):
        for label in ("outside", "onnxruntime"):
            found = report[label][name]
            seconds = [s["median_s"] for s in found["seconds"]]
            axis.loglog(found["sizes"], seconds, marker="o", label=label)
        sizes = report["outside"][name]["sizes"]
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.set_ylabel("seconds")
    axes[0].legend()
    figure.savefig(path, metadata={"Software": None})


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), dpi=100, layout="tight")
    return figure, figure.subplots()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.plots")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=PLOTS, help="where PNGs are written")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for report in reports(args.results, "latency"):
        path = args.folder / f"image-{name_of(report)}.png"
        if image_times(report, path):
            print(path)
    for report in reports(args.results, "startup"):
        for name, found in report["models"].items():
            path = args.folder / startup_table.plot_of(name, found)
            width, height = found["size"]
            cores = startup_table.cores(found["machine"])
            title = f"{name}, {width}x{height}, {found['num_inference_steps']} steps, {cores}"
            if first_images(found["rows"], path, title):
                print(path)
    scaling = args.results / "scaling.json"
    if scaling.is_file():
        growth(json.loads(scaling.read_text(encoding="utf-8")), args.folder / "growth.png")
        print(args.folder / "growth.png")


if __name__ == "__main__":
    main()
