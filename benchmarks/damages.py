"""Which damages `sdexport verify` finds, and whether it rejects healthy packages.

Damages: one layer of a package is changed and all hashes are made to agree; verification must fail
and name the component. Changes whose effect is below tests.helpers.damages.EFFECT are drawn again
and counted. Healthy runs: every family, precision, backend, number of threads and kind of session.

    python -m benchmarks.damages damages --work DIR --json benchmarks/results/damages.json
    python -m benchmarks.damages raw --work DIR --json benchmarks/results/damages-raw.json
    python -m benchmarks.damages healthy --work DIR --json benchmarks/results/healthy.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reports import save, show_and_save
from sdexport import Package
from sdexport.demo_model import MODEL_DIR
from sdexport.engines.errors import SDExportError
from sdexport.exporter import export
from sdexport.verification.limits import FACTOR, FLOAT32_RANGES, OPENVINO, RANGES
from sdexport.verification.report import Check
from sdexport.verification.verifier import verify_package
from tests.helpers.damages import (
    COMPONENTS,
    EFFECT,
    KINDS,
    Damage,
    Effects,
    Graph,
    damaged_copy,
    draw,
)
from tests.helpers.families import FAMILIES, build
from tests.helpers.low_precision import export_from_graphs

_log = logging.getLogger("benchmarks.damages")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
BACKENDS = ("onnxruntime", "openvino")
SEED, COUNT = 20260519, 40
DEMO = "demo"
EVERY = (DEMO, *FAMILIES)
_TRIES = 20
"""Draws of one kind in one component, before the next turn."""
RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("onnxruntime", {}),
    *(("onnxruntime", {"threads": threads}) for threads in (1, 2, 3, 4)),
    ("onnxruntime", {"low_memory": True}),
    ("onnxruntime", {"optimization": "none", "prepacking": False}),
    ("openvino", {}),
    *(("openvino", {"threads": threads}) for threads in (1, 4)),
    ("openvino", {"rewrite": False}),
    ("openvino", {"static": False}),
    *(("openvino", {"precision": name}) for name in ("bf16", "f16", "i8")),
    ("openvino", {"precision": "bf16", "rewrite": False}),
)
"""Backend and options of the healthy runs."""
BF16_NOTE = "not run: ONNX Runtime has no bfloat16 kernels for the CPU"


def packages(work: Path, family: str) -> dict[str, Path]:
    """A package of each precision, exported unless it is there; each graph is traced once."""
    found = {name: work / family / name for name in PRECISIONS}
    checkpoint = MODEL_DIR if family == DEMO else work / family / "checkpoint"
    if not checkpoint.exists():
        build(family, checkpoint)
    for name, folder in found.items():
        if not folder.exists() and name == "fp32":
            export(checkpoint, folder)
        elif not folder.exists():
            export_from_graphs(found["fp32"], checkpoint, name, folder)
    return found


def drawn(
    package: Path, count: int, *, least: float = EFFECT, seed: int = SEED
) -> tuple[list[tuple[Damage, float]], Any]:
    """Damages with their effect, and how many draws of each kind were rejected.

    Kinds and components take turns, so that every kind meets every component.

    Args:
      package: in float32.
      least: the least effect; 0 accepts every draw.
    """
    rng, rejected = np.random.default_rng(seed), Counter[str]()
    graphs = {name: Graph(package / name / "model.onnx") for name in COMPONENTS}
    effects = {name: Effects(package, name) for name in COMPONENTS}
    accepted: list[tuple[Damage, float]] = []
    turns = cycle((k, COMPONENTS[(i + j) % 4]) for j in range(4) for i, k in enumerate(KINDS))
    while len(accepted) < count:
        kind, component = next(turns)
        for _ in range(_TRIES):
            damage = draw(graphs[component], component, kind, rng)
            if damage is None:
                rejected[f"{kind}: no second layer of the same shape"] += 1
                continue
            size = effects[component].of(damage)
            if size >= least:
                accepted.append((damage, size))
                break
            rejected[f"{kind}: effect below {least:g}"] += 1
    return accepted, rejected


def damages(work: Path, count: int = COUNT, *, least: float = EFFECT) -> dict[str, Any]:
    """A row for each damage, precision and backend; the arguments are those of `drawn`."""
    folders = packages(work, DEMO)
    accepted, rejected = drawn(folders["fp32"], count, least=least)
    rows = []
    for damage, size in accepted:
        for precision, backend in _combinations():
            with tempfile.TemporaryDirectory(dir=work) as scratch:
                folder = damaged_copy(folders[precision], damage, Path(scratch) / "package")
                package = Package.load(folder, verify=False)
                checks = verify_package(package, backend, hashes=False, only=damage.component)
            row = {"precision": precision, "backend": backend, "effect": size, **asdict(damage)}
            rows.append(row | verdict(checks, damage.component))
            _log.info("%s", rows[-1])
    found = [row for row in rows if row["caught"]]
    return {
        "seed": SEED,
        "least_effect": least,
        "draws": count + sum(rejected.values()),
        "rejected": dict(rejected),
        "damages": count,
        "runs": len(rows),
        "caught": len(found),
        "caught_as_they_ran": sum(row["caught_as_it_ran"] for row in rows),
        "not_run": {"bf16 on onnxruntime": BF16_NOTE},
        "rows": rows,
    }


def verdict(checks: list[Check], component: str) -> dict[str, Any]:
    """Whether and where a damage was found, and its share of the limit there."""
    failed = [check for check in checks if not check.passed]
    measured = [(m, f"{c.name} {c.output}, {m.label}") for c in checks for m in c.measures]
    worst, where = max(measured, key=lambda each: each[0].share)
    as_run = [m for m, _ in measured if not m.kind.startswith("float32")]
    return {
        "caught": bool(failed) and all(c.name.partition(".")[0] == component for c in failed),
        "caught_by": where,
        "share_of_limit": worst.share,
        "caught_as_it_ran": any(m.share > 1 for m in as_run),
    }


def _combinations() -> Iterator[tuple[str, str]]:
    return (
        (precision, backend)
        for precision in PRECISIONS
        for backend in BACKENDS
        if (precision, backend) != ("bf16", "onnxruntime")
    )


def healthy(
    work: Path, families: Sequence[str] = EVERY, path: Path | None = None
) -> dict[str, Any]:
    """A row for each family, precision, backend and kind of session.

    Args:
      path: the report is written here after each run. The rows that it already has are kept if they
        were measured with the limits of now.
    """
    known = _read(path) if path and path.is_file() else []
    rows = {_key(row): row for row in known}
    for family in families:
        for precision, backend, options in plan(family):
            wanted = {"family": family, "precision": precision, "backend": backend}
            wanted |= {"options": options, "limits": _limits(precision, options)}
            if rows.get(_key(wanted), {}).get("limits") != wanted["limits"]:
                row = wanted | _run(work, family, precision, backend, options)
                rows[_key(row)] = row
                _log.info("%s", row)
                save(_summary(rows.values()), path)
    return _summary(rows.values())


def plan(family: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The (precision, backend, options) of the healthy runs of a family.

    The demo model meets all RUNS. So does each other family with ONNX Runtime; with OpenVINO, where
    a run takes five times as long, a third of them in each precision in turn: in all precisions
    together, each family meets all.
    """
    slow = [run for run in RUNS if run[0] == "openvino"]
    for number, precision in enumerate(PRECISIONS):
        share = slow if family == DEMO else slow[(EVERY.index(family) + number) % 3 :: 3]
        for run in RUNS:
            if (run in share or run not in slow) and (precision, run[0]) in _combinations():
                yield precision, *run


def _run(
    work: Path, family: str, precision: str, backend: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Verify a package, which is exported unless it is there; a failed export is an alarm too."""
    try:
        package = Package.load(packages(work, family)[precision], verify=False)
        return _nearest(verify_package(package, backend, hashes=False, **options))
    except SDExportError as error:
        return {"passed": False, "failed": [str(error)], "nearest": {}}


def _limits(precision: str, options: Mapping[str, Any]) -> str:
    """Short digest of the limits that a run depends on."""
    arithmetic = OPENVINO.get(str(options.get("precision")), precision)
    ranges = [RANGES[name] for name in (precision, arithmetic)]
    return hashlib.sha256(repr([FACTOR, FLOAT32_RANGES, ranges]).encode()).hexdigest()[:12]


def _read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def _key(row: Mapping[str, Any]) -> str:
    return str([row[name] for name in ("family", "precision", "backend", "options")])


def _summary(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    found = sorted(rows, key=lambda row: EVERY.index(row["family"]))
    alarms = [row for row in found if not row["passed"]]
    return {"runs": len(found), "false_alarms": len(alarms), "rows": found}


def _nearest(checks: list[Check]) -> dict[str, Any]:
    """Whether all passed, and of each measure the value that is nearest to its limit."""
    nearest: dict[str, dict[str, Any]] = {}
    for check in checks:
        for measure in check.measures if check.output != "files" else ():
            known = nearest.get(measure.kind)
            if known is None or measure.share > known["share"]:
                row = f"{check.name} {check.output}"
                found = {"value": measure.value, "limit": measure.limit, "share": measure.share}
                nearest[measure.kind] = {"row": row, **found}
    failed = [
        f"{check.name} {check.output}: {check.verdict}" for check in checks if not check.passed
    ]
    return {"passed": not failed, "failed": failed, "nearest": nearest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.damages")
    parser.add_argument("what", choices=("damages", "raw", "healthy"), help="raw: every draw")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and packages")
    parser.add_argument(
        "--json", type=Path, help="also write the report here; healthy: after each run"
    )
    parser.add_argument("--family", action="append", choices=EVERY, help="healthy: of these alone")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("sdexport").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        if args.what == "healthy":
            report = healthy(work, args.family or EVERY, args.json)
        else:
            report = damages(work, least=0 if args.what == "raw" else EFFECT)
    show_and_save(report, args.json)


if __name__ == "__main__":
    main()
