"""What a package costs on each backend: every component, and whole pictures.

Each backend lives in a process of its own and they are asked in turn, so that all meet the same
machine and no two compute at the same time. What is timed is checked against PyTorch's recorded
answers first. No PyTorch, no peers: those are in benchmarks/.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.bench.bench_worker import PAINTED
from sdexport.bench.measure import machine, summary
from sdexport.engines.backends import available, check_backend
from sdexport.engines.errors import WorkerError
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.worker_process import Worker
from sdexport.runtime.component_backends import parse_option
from sdexport.runtime.component_engines import engine_path
from sdexport.runtime.packages.package import Package

PROMPT = "a photograph of an astronaut riding a horse"
Progress = Callable[[str], object]


@dataclass(frozen=True)
class Contender:
    """A backend with options of its sessions; written NAME[,OPTION=VALUE...]."""

    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Contender:
        """Raises: ValueError: no such backend, or an option without a value."""
        backend, *rest = text.split(",")
        options: dict[str, Any] = {}
        for part in rest:
            try:
                name, value = parse_option(part)
            except ValueError as error:
                raise ValueError(f"--backend {text:.60}: {error}") from None
            options[name] = value
        return cls(check_backend(backend), options)

    def __str__(self) -> str:
        return ",".join([self.backend, *(f"{k}={v}" for k, v in self.options.items())])


@dataclass(frozen=True)
class Work:
    """What is timed. width, height: pixels; repeats: timed calls of each, after one warm-up."""

    width: int
    height: int
    num_inference_steps: int = 5
    guidance_scale: float = 7.5
    batch: int = 1
    repeats: int = 5
    scheduler: str | None = None


def bench(
    folder: str | Path,
    contenders: Sequence[Contender] = (),
    *,
    size: tuple[int, int] | None = None,
    progress: Progress = lambda what: None,
    **options: Any,
) -> dict[str, Any]:
    """Time every component and a whole picture on each backend.

    Args:
      contenders: default each backend that can run here.
      size: (width, height) in pixels; default the package's own.
      options: further fields of Work.
      progress: called with what is done next.
    Returns: a report for JSON; what a backend cannot do has {"error": ...} there.
    Raises: FileNotFoundError, PackageError: no package. ValueError: sizes out of range.
    """
    package = Package.load(folder, verify=False)
    work = _work(package, size, options)
    plan_of = lambda name: engine_path(package, package.family.denoiser, name)  # noqa: E731
    rivals = contenders or [Contender(name) for name in available(plan_of=plan_of)]
    report: dict[str, Any] = {
        "package": package.folder.resolve().name,
        "family": package.manifest.family,
        "precision": {n: c.precision for n, c in package.manifest.components.items()},
        "work": asdict(work),
        "machine": machine(),
        "backends": {str(rival): {} for rival in rivals},
    }
    rows = report["backends"]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        alive: dict[str, Worker] = {}
        for rival in rivals:
            progress(f"{rival}: check")
            worker = _opened(package.folder, rival, rows[str(rival)])
            if worker is not None:
                alive[str(rival)] = stack.enter_context(worker)
        for name in _components(rows):
            progress(name)
            path = Path(scratch) / f"{name}.npz"
            inputs = next(r["components"][name]["inputs"] for r in rows.values() if r.get("opened"))
            np.savez(path, allow_pickle=False, **feeds(inputs, package, work))
            requests = [{"name": name, "feeds": str(path)}] * (work.repeats + 1)
            asked = in_turn(alive, "component", requests)
            for label, measured in asked.items():
                rows[label]["components"][name] |= measured
        progress("picture")
        pictures = [{"arguments": _arguments(package, work, i)} for i in range(work.repeats + 1)]
        asked = in_turn(alive, "picture", pictures)
        for label, measured in asked.items():
            rows[label]["picture"] = measured
    return report


def in_turn(
    workers: Mapping[str, Worker], do: str, requests: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Ask each worker the same, in turn; the first request is the warm-up.

    Returns: for each worker seconds (median_s, p20_s, p80_s, samples_s), warm_up_s, peak_mb and,
      for pictures, stages; or {"error": ...} of one that failed.
    """
    answers: dict[str, list[dict[str, Any]]] = {label: [] for label in workers}
    failed: dict[str, dict[str, Any]] = {}
    for request in requests:
        for label, worker in workers.items():
            if label not in failed:
                try:
                    answers[label].append(worker.ask(do, **request))
                except WorkerError as error:
                    failed[label] = {"error": str(error)}
    return failed | {
        label: measured(found) for label, found in answers.items() if label not in failed
    }


def measured(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one worker's answers, the first of which is the warm-up."""
    warm_up, *timed = answers
    peaks = [answer["peak_mb"] for answer in answers if answer["peak_mb"] is not None]
    report = summary([answer["seconds"] for answer in timed])
    report |= {"warm_up_s": warm_up["seconds"], "peak_mb": max(peaks, default=None)}
    if "stages" in warm_up:
        names = warm_up["stages"]
        report["stages"] = {n: summary([a["stages"][n] for a in timed]) for n in names}
    return report


def feeds(inputs: Sequence[Any], package: Package, work: Work) -> dict[str, np.ndarray]:
    """Seeded arrays for inputs [name, dtype, shape], at the sizes of a guided picture."""
    unit, rng = package.manifest.downscale, np.random.default_rng(0)
    guided = any(name == "encoder_hidden_states" for name, _, _ in inputs)
    latent = {"height": work.height // unit, "width": work.width // unit}
    sizes = {"batch": work.batch * (2 if guided else 1), "sequence": 77, **latent}
    found = {}
    for name, dtype, shape in inputs:
        dims = [d if isinstance(d, int) else sizes.get(d, 1) for d in shape]
        if name == "timestep":
            found[name] = np.full(dims, 500, dtype)
        elif np.issubdtype(np.dtype(dtype), np.integer):
            found[name] = rng.integers(0, 400, dims, dtype=dtype)
        else:
            found[name] = rng.standard_normal(dims).astype(dtype)
    return found


def feeds_for(folder: Path, width: int, height: int) -> dict[str, dict[str, np.ndarray]]:
    """`feeds` of every component that a picture from text needs, from the graphs themselves."""
    package = Package.load(folder, verify=False)
    work = Work(width, height)
    found = {}
    for name in package.manifest.components:
        if name in PAINTED:
            inputs, _ = graph_specs(package.model_path(name))
            found[name] = feeds([(s.name, s.dtype, s.shape) for s in inputs], package, work)
    return found


def table(report: Mapping[str, Any]) -> str:
    """The report as aligned text: a row a backend, seconds are medians."""
    rows_of, work = report["backends"], report["work"]
    names = _components(rows_of)
    head = ["backend", "open s", *(f"{name} ms" for name in names), "picture s", "peak MB"]
    rows, notes = [[*head, "against PyTorch"]], []
    for label, row in rows_of.items():
        if "error" in row:
            notes.append(f"{label}: {row['error']}")
            continue
        opened = sum(part["open_s"] for part in row["components"].values())
        cells = [label, f"{opened:.2f}"]
        cells += [_shown(row["components"].get(name, {}), 1000, "{:.1f}") for name in names]
        cells += [_shown(row["picture"], 1, "{:.3f}"), f"{row['picture'].get('peak_mb') or '-'}"]
        rows.append([*cells, _verdict(row["check"])])
        errors = {**row["components"], "picture": row["picture"]}
        notes += [f"{label}: {n}: {e['error']}" for n, e in errors.items() if "error" in e]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    title = (
        f"{report['package']}: {work['width']}x{work['height']}, batch {work['batch']}, "
        f"{work['num_inference_steps']} steps; medians of {work['repeats']} after a warm-up"
    )
    return "\n".join([title, "", *lines, *notes])


def _work(package: Package, size: tuple[int, int] | None, options: Mapping[str, Any]) -> Work:
    height, width = package.manifest.default_size
    work = Work(*(size or (width, height)), **options)
    unit = package.manifest.downscale
    if min(work.width, work.height) < unit or work.width % unit or work.height % unit:
        raise ValueError(f"size must be multiples of {unit} pixels, got {work.width}x{work.height}")
    return work


def prompt_of(i: int) -> str:
    """Another prompt each time, as the pipeline need not encode one that it has met."""
    return f"{PROMPT}, number {i}"


def _arguments(package: Package, work: Work, i: int) -> dict[str, Any]:
    """Of the pipeline."""
    return {
        "prompt": [prompt_of(i)] * work.batch,
        "negative_prompt": [""] * work.batch,
        "width": work.width,
        "height": work.height,
        "num_inference_steps": work.num_inference_steps,
        "guidance_scale": work.guidance_scale,
        "scheduler": work.scheduler,
        "seed": 0,
    }


def _opened(folder: Path, rival: Contender, row: dict[str, Any]) -> Worker | None:
    """A worker whose answers were looked at and that has the package open; fills its row."""
    how = {"model": str(folder), "backend": rival.backend, "options": dict(rival.options)}
    command = [sys.executable, "-m", "sdexport.bench.bench_worker"]
    worker = None
    try:
        with Worker(command) as checker:
            row["check"] = checker.ask("check", **how)
        worker = Worker(command)
        row |= worker.ask("open", **how) | {"opened": True}
    except WorkerError as error:
        row["error"] = str(error)
        if worker is not None:
            worker.close()
        return None
    return worker


def _components(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(next((r["components"] for r in rows.values() if r.get("opened")), ()))


def _shown(measured: Mapping[str, Any], factor: float, form: str) -> str:
    return form.format(measured["median_s"] * factor) if "median_s" in measured else "-"


def _verdict(check: Mapping[str, Any]) -> str:
    if check["passed"] is None:
        return "nothing recorded"
    errors = [c["error"] for c in check["checks"] if c["metric"] == "relative" and c["error"]]
    worst = f"{max(errors):.1e}" if errors else "-"
    return f"ok {worst}" if check["passed"] else f"differs {worst}"
