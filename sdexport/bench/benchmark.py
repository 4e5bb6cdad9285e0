"""How fast a package runs on each backend: every component, and whole images.

Each backend runs in a separate process. Their runs alternate, so that a machine that changes its
speed does so for all, and no two compute at the same time. Each backend is first compared with the
package's reference outputs. Comparisons with other programs are in benchmarks/.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.bench.bench_table import component_names
from sdexport.bench.measure import machine, summary
from sdexport.bench.workload import Work, feeds, prompt_of
from sdexport.engines.backends import available, choose
from sdexport.engines.errors import InvalidArgumentError, WorkerError
from sdexport.engines.worker_process import Worker, module_worker
from sdexport.runtime.component_backends import BackendSpec
from sdexport.runtime.component_engines import engine_path
from sdexport.runtime.packages.package import Package

WORKER = "sdexport.bench.bench_worker"
Progress = Callable[[str], object]


def bench(
    folder: str | Path,
    contenders: Sequence[BackendSpec] = (),
    *,
    size: tuple[int, int] | None = None,
    engine_dir: str | Path | None = None,
    progress: Progress = lambda what: None,
    **options: Any,
) -> dict[str, Any]:
    """Time every component and a whole image on each backend.

    Args:
      contenders: default every backend that can run here.
      size: (width, height) in pixels; default the package's own.
      engine_dir: where engines are, instead of the package's own engines folder.
      options: further fields of Work.
      progress: called with the name of what is timed next.
    Returns: a report for JSON; where a backend fails there is {"error": message}.
    Raises: FileNotFoundError, PackageError: no package. InvalidArgumentError: sizes out of range.
      MissingDependencyError: no backend is installed.
    """
    package = Package.load(folder, verify=False)
    work = _work(package, size, options)
    denoiser = package.family.denoiser
    plan_of = lambda name: engine_path(package, denoiser, name, engine_dir)  # noqa: E731
    if not contenders:
        choose(plan_of=plan_of)  # raises an error if no backend is installed
        contenders = [BackendSpec(name) for name in available(plan_of=plan_of)]
    if engine_dir is not None:
        where = {"engine_dir": str(engine_dir)}
        contenders = [BackendSpec(each.name, {**each.options, **where}) for each in contenders]
    rows: dict[str, dict[str, Any]] = {str(contender): {} for contender in contenders}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        workers: dict[str, Worker] = {}
        for contender in contenders:
            progress(f"{contender}: check")
            worker = _open_worker(package.folder, contender, rows[str(contender)])
            if worker is not None:
                workers[str(contender)] = stack.enter_context(worker)
        for name in component_names(rows):
            progress(name)
            _time_component(name, workers, rows, package, work, Path(scratch))
        progress("image")
        requests = [{"arguments": _arguments(work, i)} for i in range(work.repeats + 1)]
        for label, figures in in_turn(workers, "image", requests).items():
            rows[label]["image"] = figures
    return {
        "package": package.folder.resolve().name,
        "family": package.manifest.family,
        "precision": {n: c.precision for n, c in package.manifest.components.items()},
        "work": asdict(work),
        "machine": machine(),
        "backends": rows,
    }


def _time_component(
    name: str,
    workers: Mapping[str, Worker],
    rows: Mapping[str, dict[str, Any]],
    package: Package,
    work: Work,
    folder: Path,
) -> None:
    """Time one component on every backend, with the same inputs; adds the figures to `rows`."""
    path = folder / f"{name}.npz"
    inputs = next(row["components"][name]["inputs"] for row in rows.values() if row.get("opened"))
    np.savez(path, allow_pickle=False, **feeds(inputs, package, work))
    requests = [{"name": name, "feeds": str(path)}] * (work.repeats + 1)
    for label, figures in in_turn(workers, "component", requests).items():
        rows[label]["components"][name] |= figures


def in_turn(
    workers: Mapping[str, Worker], do: str, requests: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Send each request to every worker, one worker after the other; the first is the warm-up.

    Returns: for each worker its figures, see `measured`; {"error": message} if a request failed.
    """
    responses: dict[str, list[dict[str, Any]]] = {label: [] for label in workers}
    failed: dict[str, dict[str, Any]] = {}
    for request in requests:
        for label, worker in workers.items():
            if label not in failed:
                try:
                    responses[label].append(worker.request(do, **request))
                except WorkerError as error:
                    failed[label] = {"error": str(error)}
    return failed | {
        label: measured(found) for label, found in responses.items() if label not in failed
    }


def measured(responses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one worker, whose first response is the warm-up.

    Returns: seconds (median_s, p20_s, p80_s, samples_s), warm_up_s, peak_mb, and for images the
      seconds of each stage under "stages".
    """
    warm_up, *timed = responses
    peaks = [response["peak_mb"] for response in responses if response["peak_mb"] is not None]
    report = summary([response["seconds"] for response in timed])
    report |= {"warm_up_s": warm_up["seconds"], "peak_mb": max(peaks, default=None)}
    if "stages" in warm_up:
        names = warm_up["stages"]
        report["stages"] = {n: summary([a["stages"][n] for a in timed]) for n in names}
    return report


def _work(package: Package, size: tuple[int, int] | None, options: Mapping[str, Any]) -> Work:
    height, width = package.manifest.default_size
    work = Work(*(size or (width, height)), **options)
    unit = package.manifest.downscale
    if min(work.width, work.height) < unit or work.width % unit or work.height % unit:
        raise InvalidArgumentError(
            f"size must be multiples of {unit} pixels, got {work.width}x{work.height}"
        )
    return work


def _arguments(work: Work, i: int) -> dict[str, Any]:
    """The pipeline's arguments for run number i."""
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


def _open_worker(folder: Path, contender: BackendSpec, row: dict[str, Any]) -> Worker | None:
    """Check a backend, then open the package in a worker; adds both results to its row."""
    how = {"model": str(folder), "backend": contender.name, "options": dict(contender.options)}
    worker = None
    try:
        with module_worker(WORKER) as checker:
            row["check"] = checker.request("check", **how)
        worker = module_worker(WORKER)
        row |= worker.request("open", **how) | {"opened": True}
    except WorkerError as error:
        row["error"] = str(error)
        if worker is not None:
            worker.close()
        return None
    return worker
