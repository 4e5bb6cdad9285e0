"""Fill the tables of README and docs/performance.md from the committed JSON:

    python -m benchmarks.readme_tables

Everything between the two marker comments is replaced.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.checkpoints import NAMES
from sdexport.verification.report import METRICS

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = "docs/performance.md"
MARKED = re.compile(r"(<!-- tables -->\n).*(<!-- /tables -->)", re.DOTALL)


def evaluation(report: dict[str, Any]) -> str:
    lines = [
        f"The embedded model on held-out prompts ({report['steps']} steps, guidance "
        f"{report['guidance_scale']:g}, painted by the NumPy runtime, judged by image analysis; "
        "`python -m sdexport.demo_model.evaluate`):\n",
        "| prompts | scheduler | colour | background | shape | size | all |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = [
        "\nTwo-object prompts, reported without a bound:\n",
        "| prompts | scheduler | background | both objects | relation | all |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("lms", "ddim"):
        single, pair = report[f"single.{name}"], report[f"pair.{name}"]
        columns = ("colour", "background", "shape", "size", "all")
        lines.append(_row(single["prompts"], name, *(f"{single[c]:.1%}" for c in columns)))
        columns = ("background", "objects", "relation", "all")
        pairs.append(_row(pair["prompts"], name, *(f"{pair[c]:.1%}" for c in columns)))
    return "\n".join(lines + pairs)


def precisions(report: dict[str, Any]) -> str:
    """Each precision beside float32: size, distance to PyTorch, and what its pictures show."""
    lines = [
        f"The embedded model in every precision, {report['prompts']} held-out one-object prompts "
        f"({report['steps']} steps, guidance {report['guidance_scale']:g}; `python -m "
        "benchmarks.precision`). PSNR against the pictures of fp32, the median and the worst:\n",
        "| precision | on | graphs | least cosine to PyTorch | right, lms | right, ddim "
        "| PSNR, lms | PSNR, ddim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in report["precisions"].items():
        size, cosine = f"{found['graphs_mb']:.1f} MB", f"{min(found['cosine'].values()):.6f}"
        lines.append(_row(name, found["backend"], size, cosine, *_shown(found, name == "fp32")))
    for name, found in report.get("arithmetic", {}).items():
        backend = f"openvino, precision={name}"
        lines.append(_row("fp32", backend, "", "", *_shown(found)))
    return "\n".join(lines)


def _shown(found: dict[str, Any], reference: bool = False) -> list[str]:
    """Shares of right pictures, and decibels beside the reference's."""
    by_scheduler = [found["lms"], found["ddim"]]
    return [
        *(f"{s['all']:.1%}" for s in by_scheduler),
        *("" if reference else f"{s['psnr_median']:.0f} / {s['psnr_min']:.0f} dB"
          for s in by_scheduler),
    ]  # fmt: skip


SIZES = {
    "sd1": "sd15",
    "inpainting": "sd15",
    "lcm": "sd15",
    "sd2-v": "sd2",
    "turbo": "sd2",
    "sdxl": "sdxl",
    "sdxl-turbo": "sdxl",
    "sdxl-inpainting": "sdxl",
    "refiner": "refiner",
}
"""Family -> the full-size model of its architecture."""


def families(small: dict[str, Any], full: dict[tuple[str, str], dict[str, Any]]) -> str:
    """What each family paints beside diffusers, and what its export costs at full size."""
    lines = [
        "Every family: pictures of the exported graphs beside diffusers' own pipeline in float32, "
        "from small random checkpoints (`python -m benchmarks.families`); and the export of a "
        "full-size model of that architecture with seeded random weights, all components, with "
        "verification (`python -m benchmarks.full_size`, below). Turbo, LCM and inpainting models "
        "have the size of the model that they come from:\n",
        "| family | fp32: largest difference, of 255 | fp16: likewise, PSNR | full size "
        "| export | peak memory | package, fp32 | package, fp16 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shown: dict[str, str] = {}
    for name, found in small["families"].items():
        half = found["fp16"]
        model = SIZES.get(name, "")
        costs = [""] * 5
        if model in shown:
            costs[0] = f"as {shown[model]}"
        elif report := full.get((model, "fp16"), full.get((model, "fp32"))):
            stage = report["stages"]["export"]
            sizes = [full.get((model, p), {}).get("package_gb") for p in ("fp32", "fp16")]
            costs = [
                f"{model}, {report['precision']}",
                f"{stage['seconds']:.0f} s",
                f"{stage['peak_gb']:.1f} GB",
                *(f"{size:.2f} GB" if size else "not measured" for size in sizes),
            ]
            shown[model] = name
        decibels = "equal" if half["psnr_db"] is None else f"{half['psnr_db']:.0f} dB"
        pictures = found["fp32"]["picture_of_255"], f"{half['picture_of_255']}, {decibels}"
        lines.append(_row(name, *pictures, *costs))
    return "\n".join(lines)


def full_size(reports: list[dict[str, Any]]) -> str:
    """What full-size models cost: seconds and memory of each stage, a row for each model."""
    lines = [
        f"Full-size models, seeded random weights, on {reports[0]['machine']['cores']} cores "
        "(`python -m benchmarks.full_size`; single runs, each command a process of its own). "
        "Memory is the peak of what was resident; in brackets without mapped files, which the "
        "system takes back at need:\n",
        "| model | weights read | package | export, with verification | `sdexport verify` "
        "| `sdexport generate`, 256x256, 2 steps | largest difference to PyTorch "
        "of a component, of the picture |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        *components, picture = report["checks"]
        worst = max(components, key=lambda check: check["share"])
        held = "with --low-memory" if report.get("low_memory") else None
        largest = (METRICS[c["metric"]].format(c["error"]) for c in (worst, picture))
        lines.append(
            _row(
                ", ".join(filter(None, (report["family"], report.get("remark"), held))),
                report["source"],
                f"{report['precision']}, {report['package_gb']:.2f} GB",
                *(_stage(report["stages"][s]) for s in ("export", "verify", "generate")),
                ", ".join(largest),
            )
        )
    return "\n".join(lines)


def gpu(report: dict[str, Any]) -> str:
    """Milliseconds of a UNet call and seconds of a picture, for each backend that answered."""
    machine, lines = report["environment"], []
    name, versions = machine["gpu"].get("name", "no GPU"), machine["versions"]
    known = ", ".join(f"{k} {v}" for k, v in versions.items() if v)
    lines.append(f"On {name} (`python -m benchmarks.gpu`; random weights; {known}):")
    for model in dict.fromkeys(key.split(".")[0] for key in report if "." in key):
        calls = _tasks(report, f"{model}.unet.", "host")
        lines += _gpu_table(
            f"{model}: UNet call, ms by CUDA events, or by the host's clock; of these the share of "
            "the measured arithmetic limit",
            "batch x pixels",
            calls,
            lambda row: f"{_us(row) / 1000:.2f} ({row['shares']['arithmetic']:.0%})",
        )
        pictures = _tasks(report, f"{model}.picture.", "seconds")
        lines += _gpu_table(
            f"{model}: whole picture, s",
            "steps",
            pictures,
            lambda row: f"{statistics.median(row['seconds']):.2f}",
        )
    return "\n".join(lines)


def _us(row: dict[str, Any]) -> float:
    return float(row.get("events", row["host"])["median_us"])


def _tasks(report: dict[str, Any], prefix: str, measured: str) -> dict[str, dict[str, Any]]:
    """Last part of a task's name -> backend -> what was measured there."""
    found: dict[str, dict[str, Any]] = {}
    for key, task in report.items():
        if key.startswith(prefix):
            rows = {b: r for b, r in task.items() if isinstance(r, dict) and measured in r}
            found[key.removeprefix(prefix).replace("compiled.", "compiled: ")] = rows
    return found


def _gpu_table(
    title: str,
    first: str,
    tasks: dict[str, dict[str, Any]],
    show: Callable[[dict[str, Any]], str],
) -> list[str]:
    backends = list(dict.fromkeys(backend for rows in tasks.values() for backend in rows))
    if not backends:
        return []
    lines = [f"\n{title}:\n", _row(first, *backends), f"|{'---|' * (len(backends) + 1)}"]
    for name, rows in tasks.items():
        lines.append(_row(name, *(show(rows[b]) if b in rows else "-" for b in backends)))
    return lines


def _stage(figures: dict[str, Any]) -> str:
    memory = f"{figures['peak_gb']:.1f} ({figures['anonymous_gb']:.1f}) GB"
    return f"{figures['seconds']:.0f} s, {memory}"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    shapes = json.loads((RESULTS / "shapes.json").read_text(encoding="utf-8"))
    text = f"{evaluation(shapes)}\n"
    full = [json.loads(f.read_text(encoding="utf-8")) for f in RESULTS.glob("full_size.*.json")]
    full.sort(key=lambda r: (list(NAMES).index(r["family"]), r["precision"], r["source"]))
    if (RESULTS / "families.json").is_file():
        small = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))
        text += f"\n{families(small, {(r['family'], r['precision']): r for r in full})}\n"
    if whole := [report for report in full if "checks" in report]:
        text += f"\n{full_size(whole)}\n"
    if (RESULTS / "precision.json").is_file():
        report = json.loads((RESULTS / "precision.json").read_text(encoding="utf-8"))
        text += f"\n{precisions(report)}\n"
    if (RESULTS / "gpu.json").is_file():
        report = json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))
        text += f"\n{gpu(report)}\n"
    timed = tables.reports(RESULTS, "latency")
    if timed:
        text += f"\n{tables.targets(timed)}\n\nThe goals are for SD 1.5. "
        text += f"Tables and plots: [docs/performance.md]({PAGE}).\n"
    _fill(ROOT / "README.md", text)
    if found := tables.document(RESULTS):
        _fill(ROOT / PAGE, f"{found}\n")


def _fill(page: Path, text: str) -> None:
    filled = MARKED.sub(lambda m: m[1] + text + m[2], page.read_text(encoding="utf-8"))
    page.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
