"""Fill the tables of the documentation from the committed reports.

    python -m benchmarks.docs_tables

In a page, everything between `<!-- table: NAME -->` and `<!-- /table -->` is replaced.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import (
    adapter_tables,
    controlnet_table,
    demo_model_tables,
    gpu_table,
    memory_need_table,
    operators_table,
    plans_table,
    ray_serve_table,
    security_tables,
    server_table,
    startup_table,
    tables,
)
from benchmarks.checkpoints import NAMES
from benchmarks.tables import table_row
from sdexport.verification.limits import FACTOR, FLOAT32_RANGES, RANGES
from sdexport.verification.report import MEASURES

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_NAMES = (
    *("performance.md", "verification.md", "security.md", "tensorrt-builds.md"),
    *("start-and-memory.md", "controlnet.md", "lora.md", "t2i-adapter.md", "ip-adapter.md"),
    *("generate.md", "server.md", "ray.md"),
)
PAGES = [ROOT / "docs" / name for name in _NAMES if (ROOT / "docs" / name).is_file()]
COMMAND = "python -m benchmarks.docs_tables"
MISSING = "Not measured yet."
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def precisions(report: dict[str, Any]) -> str:
    """Each precision compared with float32: size, error, and how many images are correct."""
    lines = [
        f"The demo model in every precision, {report['prompts']} held-out prompts with one object, "
        f"{report['steps']} steps, guidance scale {report['guidance_scale']:g} (`python -m "
        "benchmarks.precision`). PSNR is against the images of fp32, median and minimum.\n",
        "| precision | backend | graphs | largest relative L2 error | correct, lms | correct, ddim "
        "| PSNR, lms | PSNR, ddim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in report["precisions"].items():
        size, error = f"{found['graphs_mb']:.1f} MB", f"{max(found['relative_l2'].values()):.1e}"
        lines.append(table_row(name, found["backend"], size, error, *_shown(found, name == "fp32")))
    for name, found in report.get("arithmetic", {}).items():
        backend = f"openvino, precision={name}"
        lines.append(table_row("fp32", backend, "", "", *_shown(found)))
    return "\n".join(lines)


def _shown(found: dict[str, Any], reference: bool = False) -> list[str]:
    """Shares of correct images, and their PSNR against those of the reference."""
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
    """Largest difference from diffusers for each family, and the cost of a full-size export."""
    lines = [
        "Images of every family compared with diffusers' own pipeline in float32, from small "
        "random checkpoints (`python -m benchmarks.families`), and the cost of exporting a "
        "full-size model of that architecture with seeded random weights, verification included "
        "(`python -m benchmarks.full_size`). Turbo, LCM and inpainting models have the size of "
        "the model that they derive from.\n",
        "| family | fp32: largest difference, of 255 | fp16: largest difference, PSNR | full size "
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
        images = found["fp32"]["picture_of_255"], f"{half['picture_of_255']}, {decibels}"
        lines.append(table_row(name, *images, *costs))
    return "\n".join(lines)


def full_size(reports: list[dict[str, Any]]) -> str:
    """Seconds and memory of each stage for full-size models, one row for each."""
    lines = [
        f"Full-size models with seeded random weights on {reports[0]['machine']['cores']} cores "
        "(`python -m benchmarks.full_size`; single runs, each command in its own process). "
        "Memory is peak resident memory; in brackets without memory-mapped files, which the "
        "system can reclaim.\n",
        "| model | weights | package | export and verification | `sdexport verify` "
        "| `sdexport generate`, 256x256, 2 steps | largest difference from PyTorch: "
        "component, image |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        *components, image = report["checks"]
        worst = max(components, key=lambda check: check["share"])
        memory = "with --low-memory" if report.get("low_memory") else None
        largest = map(_nearest, (worst, image))
        lines.append(
            table_row(
                ", ".join(filter(None, (report["family"], _remark(report), memory))),
                report["source"],
                f"{report['precision']}, {report['package_gb']:.2f} GB",
                *(_stage(report["stages"][s]) for s in ("export", "verify", "generate")),
                ", ".join(largest),
            )
        )
    return "\n".join(lines)


_EARLIER = {"relative": "{:.2e}", "of 255": "{:g}/255"}
_EARLIER |= {"1 - cosine": "1-cos {:.1e}", "PSNR": "{:.1f} dB"}
"""The metrics of results that were written before MEASURES."""


def _nearest(check: dict[str, Any]) -> str:
    """The measure of a check that is nearest to its limit."""
    if "metric" in check:
        return _EARLIER[check["metric"]].format(check["error"])
    measure = max(check["measures"], key=lambda each: each["share"])
    name, form = MEASURES[measure["kind"]]
    return f"{name} {form.format(measure['value'])}"


def _stage(figures: dict[str, Any]) -> str:
    memory = f"{figures['peak_gb']:.1f} ({figures['anonymous_gb']:.1f}) GB"
    return f"{figures['seconds']:.0f} s, {memory}"


def _remark(report: dict[str, Any]) -> str | None:
    remark = report.get("remark")
    return "on a busy machine" if remark == "with other work beside it" else remark


def all_tables() -> dict[str, str]:
    """Every table that there are reports for, by its name in the pages."""
    full = [_read(path.stem) for path in RESULTS.glob("full_size.*.json")]
    full.sort(key=lambda r: (list(NAMES).index(r["family"]), r["precision"], r["source"]))
    found = {"evaluation": demo_model_tables.evaluation(_read("shapes"))}
    found["demo_adapters"] = (
        demo_model_tables.adapters(_read("demo_adapters")) if _has("demo_adapters") else MISSING
    )
    if _has("families"):
        by_model = {(r["family"], r["precision"]): r for r in full}
        found["families"] = families(_read("families"), by_model)
    if whole := [report for report in full if "checks" in report]:
        found["full_size"] = full_size(whole)
    found["limits"] = limits()
    if _has("damages"):
        raw = _read("damages-raw") if _has("damages-raw") else None
        found["damages"] = damages(_read("damages"), raw)
    if _has("healthy"):
        found["healthy"] = healthy(_read("healthy"))
    if _has("precision"):
        found["precision"] = precisions(_read("precision"))
    if _has("gpu"):
        found["gpu"] = gpu_table.table(_read("gpu"))
    if _has("plans"):
        found["plans"] = plans_table.small(_read("plans"))
    if engines := [_read(path.stem) for path in sorted(RESULTS.glob("plans-*.json"))]:
        found["full_size_plans"] = plans_table.full_size(engines)
    if _has("fuzz"):
        found["fuzz"] = security_tables.fuzzing(_read("fuzz"))
    if _has("faults"):
        found["faults"] = security_tables.faults(_read("faults"))
    if _has("soak"):
        report = _read("soak")
        found["soak"] = security_tables.soak(report)
        found["concurrency"] = security_tables.concurrency(report)
    if _has("interruption"):
        found["interruption"] = security_tables.interruption(_read("interruption"))
    if _has("memory_need"):
        found["memory_need"] = memory_need_table.table(_read("memory_need"))
    found["controlnet"] = (
        controlnet_table.table(_read("controlnet")) if _has("controlnet") else MISSING
    )
    found["server"] = server_table.table(_read("server") if _has("server") else {})
    found["ray_serve"] = ray_serve_table.table(_read("ray_serve") if _has("ray_serve") else {})
    for name in ("t2i_adapter", "ip_adapter", "safety_checker"):
        table = getattr(adapter_tables, name)
        found[name] = table(_read("adapter_costs")) if _has("adapter_costs") else MISSING
    found["lora"] = adapter_tables.lora(_read("lora")) if _has("lora") else MISSING
    started = tables.reports(RESULTS, "startup")
    found["startup"] = startup_table.table(started) if started else MISSING
    profiled = tables.reports(RESULTS, "operators")
    found["operators"] = operators_table.table(profiled) if profiled else MISSING
    if timed := tables.reports(RESULTS, "latency"):
        found["targets"] = tables.targets(timed)
        found["figures"] = tables.figures(RESULTS)
    return found


def limits() -> str:
    """The table of sdexport.verification.limits."""
    lines = [
        f"A limit is {FACTOR:g} times what the export measured, and within these (floor to "
        "ceiling; the reasons are in `sdexport/verification/limits.py`):\n",
        "| arithmetic | relative L2 | max abs | image: largest of 255 | image: RMS of 255 |",
        "|---|---|---|---|---|",
    ]
    for name, found in RANGES.items():
        spans = (found.relative_l2, found.max_abs, found.image_max, found.image_rms)
        shown = (f"{a:g} to {b:g}" if a != b else f"{a:g}" for a, b in spans)
        lines.append(table_row(_ARITHMETIC.get(name, name), *shown))
    exact = (f"{floor:g} to {ceiling:g}" for floor, ceiling in FLOAT32_RANGES.values())
    lines.append(table_row("float32, of a graph of a lower precision", *exact, "", ""))
    return "\n".join(lines)


_ARITHMETIC = {
    "openvino bf16": "OpenVINO with `precision=bf16` or `f16`",
    "webgpu fp16": "fp16 on WebGPU, on a GPU that computes in float16",
    "openvino i8": "OpenVINO with `precision=i8`",
}


def damages(report: dict[str, Any], raw: dict[str, Any] | None) -> str:
    """How many damages of each kind and component were found, and by which margin."""
    drawn = sum(report["rejected"].values())
    lines = [
        f"{report['damages']} seeded damages of the demo model, each in every precision on ONNX "
        f"Runtime and OpenVINO (bf16 on OpenVINO alone), with all hashes made to agree (`python -m "
        f"benchmarks.damages`): **{report['caught']} of {report['runs']} runs caught**, each with "
        f"the damaged component's name. {drawn} draws were rejected because in float32, on other "
        f"inputs, no output changes by {report['least_effect']:g} in relative L2, or because no "
        'second layer has the same shape. "As it ran" counts those that fail without the '
        "float32 comparison too.\n",
        "| damage | runs | caught | as it ran | smallest share of the limit |",
        "|---|---|---|---|---|",
    ]
    for key in ("kind", "component", "precision", "backend"):
        for name in dict.fromkeys(row[key] for row in report["rows"]):
            rows = [row for row in report["rows"] if row[key] == name]
            caught = sum(row["caught"] for row in rows)
            as_run = sum(row["caught_as_it_ran"] for row in rows)
            least = min(row["share_of_limit"] for row in rows)
            lines.append(table_row(name, len(rows), caught, as_run, f"{least:.1f}"))
    if raw is not None:
        lines.append(
            f"\nWithout rejecting any draw: {raw['caught']} of {raw['runs']} runs of "
            f"{raw['damages']} draws."
        )
    return "\n".join(lines)


def healthy(report: dict[str, Any]) -> str:
    """How many healthy runs failed, the largest share of each limit, and what was run."""
    rows = report["rows"]
    families = list(dict.fromkeys(row["family"] for row in rows))
    lines = [
        f"{report['runs']} verifications of healthy packages, of {len(families)} models (the demo "
        f"model and a small random checkpoint of each family; `python -m benchmarks.damages "
        f"healthy`): **{report['false_alarms']} false alarms**. The largest share of a limit and "
        "the largest value, by precision of the package and backend:\n",
        table_row("measure", *_PAIRS),
        f"|{'---|' * (len(_PAIRS) + 1)}",
    ]
    for kind in [k for k in MEASURES if k != "altered_files"]:
        cells = []
        for pair in _PAIRS:
            found = [row["nearest"][kind] for row in _of(rows, pair) if kind in row["nearest"]]
            share = max((each["share"] for each in found), default=0)
            value = max((each["value"] for each in found), default=0)
            shown = f"{value:.0f}" if value >= 100 else f"{value:.2g}"
            cells.append(f"{share:.0%} ({shown})" if found else "")
        lines.append(table_row(MEASURES[kind][0], *cells))
    lines += [
        "\nRuns of each model:\n",
        table_row("model", *_PAIRS),
        f"|{'---|' * (len(_PAIRS) + 1)}",
    ]
    for family in families:
        of_family = [row for row in rows if row["family"] == family]
        lines.append(table_row(family, *(len(_of(of_family, pair)) for pair in _PAIRS)))
    lines.append(table_row("all", *(len(_of(rows, pair)) for pair in _PAIRS)))
    lines.append("\nRuns with each option of the sessions:\n")
    for backend in ("onnxruntime", "openvino"):
        options = [_shown_options(row) for row in rows if row["backend"] == backend]
        counted = (f"{name} {options.count(name)}" for name in dict.fromkeys(options))
        lines.append(f"- {backend}: {', '.join(counted)}")
    return "\n".join(lines)


def _of(rows: list[dict[str, Any]], pair: str) -> list[dict[str, Any]]:
    return [row for row in rows if f"{row['precision']}, {row['backend']}" == pair]


def _shown_options(row: dict[str, Any]) -> str:
    shown = (f"{name}={str(value).lower()}" for name, value in row["options"].items())
    return f"`{','.join(shown)}`" if row["options"] else "none"


_PAIRS = [
    f"{precision}, {backend}"
    for precision in ("fp32", "fp16", "bf16", "int8")
    for backend in ("onnxruntime", "openvino")
    if (precision, backend) != ("bf16", "onnxruntime")
]


def _has(name: str) -> bool:
    return (RESULTS / f"{name}.json").is_file()


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def filled() -> dict[Path, str]:
    """The text of each page with its tables filled in.

    Raises: KeyError: a page asks for a table that there is no report for.
    """
    found = all_tables()
    return {
        page: _MARKED.sub(
            lambda match: f"{match[1]}{found[match[2]]}\n{match[3]}",
            page.read_text(encoding="utf-8"),
        )
        for page in PAGES
    }


def main() -> None:
    for page, text in filled().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
