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

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = "docs/performance.md"
MARKED = re.compile(r"(<!-- tables -->\n).*(<!-- /tables -->)", re.DOTALL)


def evaluation(report: dict[str, Any]) -> str:
    lines = [
        f"The embedded model on held-out prompts ({report['steps']} steps, guidance "
        f"{report['guidance_scale']:g}, painted by the NumPy runtime, judged by image analysis; "
        "`python -m sdexport.shapes.evaluate`):\n",
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
        pictures = [
            "" if name == "fp32" else f"{s['psnr_median']:.0f} / {s['psnr_min']:.0f} dB"
            for s in (found["lms"], found["ddim"])
        ]
        lines.append(
            _row(
                name,
                found["backend"],
                f"{found['graphs_mb']:.1f} MB",
                f"{min(found['cosine'].values()):.6f}",
                *(f"{found[s]['all']:.1%}" for s in ("lms", "ddim")),
                *pictures,
            )
        )
    return "\n".join(lines)


def full_size(report: dict[str, Any]) -> str:
    stages, seconds = report["stages"], report["generate_seconds"]
    *components, picture = (check["error"] for check in report["checks"])
    lines = [
        f"{report['model']}, on {report['machine']['cores']} cores (`python -m "
        "benchmarks.full_size`; single runs, each a process of its own"
        f"{report.get('remark', '')}):\n",
        "| stage | wall time | peak memory |",
        "|---|---|---|",
        _stage("export, four components, with verification", stages["export"]),
        _stage("verify, with the recorded 256x256 picture", stages["verify"]),
        _stage(
            f"generate 256x256, 2 steps, guidance on (denoise {seconds['denoise']:.1f} s, "
            f"decode {seconds['decode']:.1f} s)",
            stages["generate"],
        ),
        f"\nThe package has {report['package_gb']:.2f} GB, {report['external_data_gb']:.2f} GB of "
        "them beside the UNet's graph. "
        f"Largest difference to PyTorch of any component: {max(components):.1e} of the output's "
        f"scale; of the picture: {picture:.0f} of 255.",
    ]
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


def _stage(name: str, figures: dict[str, Any]) -> str:
    return _row(name, f"{figures['seconds']:.0f} s", f"{figures['peak_gb']:.1f} GB")


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    shapes = json.loads((RESULTS / "shapes.json").read_text(encoding="utf-8"))
    full = json.loads((RESULTS / "full_size.json").read_text(encoding="utf-8"))
    text = f"{evaluation(shapes)}\n\n{full_size(full)}\n"
    if (RESULTS / "precision.json").is_file():
        report = json.loads((RESULTS / "precision.json").read_text(encoding="utf-8"))
        text += f"\n{precisions(report)}\n"
    if (RESULTS / "gpu.json").is_file():
        report = json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))
        text += f"\n{gpu(report)}\n"
    timed = tables.reports(RESULTS, "latency")
    if timed:
        text += f"\n{tables.targets(timed)}\n\nTables and plots: [docs/performance.md]({PAGE}).\n"
    _fill(ROOT / "README.md", text)
    if found := tables.document(RESULTS):
        _fill(ROOT / PAGE, f"{found}\n")


def _fill(page: Path, text: str) -> None:
    filled = MARKED.sub(lambda m: m[1] + text + m[2], page.read_text(encoding="utf-8"))
    page.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
