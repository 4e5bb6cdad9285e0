"""Seconds of each component and of whole images, compared with other libraries in one run.

    python -m benchmarks.latency --work DIR [--model sd15] [--size 256] [--contender NAME]...

Workers stay alive and take turns, so that no two compute at the same time. Exact contenders and
those with lower precision are timed separately; those that do not fit into memory together are
timed in groups, each with the same reference, and ratios between groups go through the reference.
The first output of each is a warm-up and is reported separately; it is compared with the reference,
diffusers in float32, before anything is timed.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import arguments
from benchmarks.contenders import Contender, groups, start
from benchmarks.models import Model
from benchmarks.tables import name_of
from sdexport.bench.benchmark import measured
from sdexport.bench.measure import machine
from sdexport.bench.workload import feeds_for, prompt_of
from sdexport.engines.errors import WorkerError
from sdexport.engines.worker_process import Worker

STEPS, WARM_UP_STEPS, GUIDANCE = 5, 2, 7.5
EXACT = {"component": 1e-3, "image": 1.0}
"""Bounds: relative to the output's scale; mean difference of 255 (GenAI truncates where others
round: 0.5). Wide enough for any order of summation; a wrong scheduler or text encoder is ten times
further away."""
ROUNDED = {"component": 0.25, "image": 12.0}
"""The same for bf16 and 8 bits: rounding errors of 1/256 through a hundred layers."""


def run(
    model: Model,
    size: int,
    contenders: Sequence[Contender],
    work: Path,
    *,
    rounds: int = 3,
    minutes: float | None = None,
    memory_gb: float | None = None,
    components: bool = True,
    save: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """The report of one model at one size; `save` is called with it after each group.

    Args:
      rounds: timed calls of each, at most.
      minutes: time after which no second round is started, shared by the groups. So a slow machine
        runs fewer rounds, not for longer.
    """
    memory_gb = memory_gb or 0.85 * available_gb()
    report: dict[str, Any] = {
        "model": model.name,
        "weights_gb": round(model.weights_gb, 3),
        "size": [size, size],
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "warm_up_steps": WARM_UP_STEPS,
        "rounds": rounds,
        "slow": any(contender.slow for contender in contenders),
        "machine": machine(),
        "groups": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        cases = cases_of(model, size, Path(scratch), components=components)
        began, found = time.monotonic(), groups(contenders, model, memory_gb)
        for number, group in enumerate(found, 1):
            share = 60 * minutes * number / len(found) if minutes is not None else math.inf
            turns = Turns(rounds, began + share)
            rows = _group(group, model, work, cases, turns, Path(scratch))
            report["groups"].append(rows)
            save(report)
    return report


@dataclass(frozen=True)
class Turns:
    """The rounds of a group: at most `rounds`, and only the first after `deadline`."""

    rounds: int
    deadline: float

    def __iter__(self) -> Iterator[int]:
        """0 for the warm-up, then the number of each round."""
        for number in range(self.rounds + 1):
            if number > 1 and time.monotonic() > self.deadline:
                return
            yield number


def _group(
    group: Sequence[Contender],
    model: Model,
    work: Path,
    cases: dict[str, dict[str, Any]],
    turns: Turns,
    scratch: Path,
) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        opened: dict[str, Any] = {}
        for contender in group:
            row = rows[contender.name] = {"precision": contender.precision, "cases": {}}
            print(f"{model.name}: open {contender.name}", flush=True)
            try:
                worker, row["opened"] = start(contender, model, work)
                workers[contender.name] = stack.enter_context(worker)
                opened[contender.name] = row["opened"]["components"]
            except WorkerError as error:
                row["error"] = str(error)
        for case, request in cases.items():
            print(f"{model.name}: {case}", flush=True)
            found = _in_turn(group, workers, opened, case, request, turns, scratch)
            for name, figures in found.items():
                rows[name]["cases"][case] = figures
    return rows


def _in_turn(
    group: Sequence[Contender],
    workers: dict[str, Worker],
    opened: dict[str, Any],
    case: str,
    request: dict[str, Any],
    turns: Turns,
    scratch: Path,
) -> dict[str, Any]:
    """Warm up, check, then time in turn; return the figures or the error of each."""
    responses: dict[str, list[Any]] = {}
    found: dict[str, Any] = {}
    for number in turns:
        for contender in group:
            name = contender.name
            if name not in workers or "error" in found.get(name, {}):
                continue
            if request["do"] == "component" and case not in opened[name]:
                continue
            current = dict(request)
            if current["do"] == "image":
                steps = STEPS if number else WARM_UP_STEPS
                changes = {"num_inference_steps": steps, "scheduler": contender.scheduler}
                changes["prompt"] = prompt_of(number)
                current["arguments"] = current["arguments"] | changes
            try:
                output = _output(scratch, case, name, current["do"])
                response = workers[name].request(**current, output=str(output))
                responses.setdefault(name, []).append(response)
                if number == 0:
                    found[name] = {"check": _check(scratch, case, contender, current["do"])}
            except WorkerError as error:
                found[name] = {"error": str(error)}
    for name, timings in responses.items():
        if "error" not in found[name]:
            found[name] |= measured(timings)
    return found


def _output(scratch: Path, case: str, name: str, kind: str) -> Path:
    suffix = "npz" if kind == "component" else "npy"
    return scratch / f"{case}-{name}.{suffix}".replace(" ", "_")


def _check(scratch: Path, case: str, contender: Contender, kind: str) -> dict[str, Any]:
    """Difference of an output from the reference, which is the first output of the case.

    Raises: WorkerError: too large for the same computation.
    """
    actual = _load_output(_output(scratch, case, contender.name, kind))
    path = scratch / f"{case}-reference.npy"
    if not path.exists():
        np.save(path, actual)
        return {"reference": True}
    expected = np.load(path)
    if actual.shape != expected.shape:
        raise WorkerError(f"returned {actual.shape} instead of {expected.shape}")
    difference = np.abs(actual - expected)
    figures = {
        "max": float(difference.max() / (np.abs(expected).max() if kind == "component" else 1)),
        "mean": float(difference.mean()),
    }
    bound = (EXACT if contender.exact else ROUNDED)[kind]
    error = figures["max" if kind == "component" else "mean"]
    if not error <= bound:
        raise WorkerError(f"differs from the reference by {error:.3g}; the bound is {bound:g}")
    return figures | {"bound": bound}


def _load_output(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path).astype(np.float64)
    with np.load(path) as data:
        names = ("out_sample", "sample", "last_hidden_state")
        return data[next(n for n in names if n in data)].astype(np.float64)


def cases_of(model: Model, size: int, scratch: Path, *, components: bool) -> dict[str, Any]:
    """Requests by case name; their arrays are written to files."""
    found: dict[str, Any] = {}
    for name, arrays in feeds_for(model.package, size, size).items() if components else ():
        if model.whole_images or name == "unet":
            np.savez(scratch / f"{name}.npz", allow_pickle=False, **arrays)
            feeds = str(scratch / f"{name}.npz")
            found[name] = {"do": "component", "name": name, "feeds": feeds}
    if model.whole_images:
        latents = np.random.default_rng(0).standard_normal((1, 4, size // 8, size // 8), np.float32)
        np.save(scratch / "latents.npy", latents)
        arguments = {
            "prompt": prompt_of(0),
            "negative_prompt": "",
            "width": size,
            "height": size,
            "guidance_scale": GUIDANCE,
        }
        found["picture"] = {  # the key in the committed reports
            "do": "image",
            "arguments": arguments,
            "latents": str(scratch / "latents.npy"),
        }
    return found


def available_gb() -> float:
    """Available memory; half of the total if the system does not report it."""
    path = Path("/proc/meminfo")
    if path.is_file():
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2e9


def main() -> None:
    parser = arguments.parser("latency", __doc__)
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each, at most")
    parser.add_argument(
        "--minutes", type=float, help="start no further round after this time; default no limit"
    )
    parser.add_argument("--images-only", action="store_true", help="do not time components")
    args = parser.parse_args()
    for model, size, contenders in arguments.selected(args):
        run(
            model,
            size,
            contenders,
            args.work,
            rounds=args.rounds,
            minutes=args.minutes,
            memory_gb=args.memory,
            components=not args.images_only,
            save=lambda report: arguments.save(report, f"latency-{name_of(report)}", args),
        )


if __name__ == "__main__":
    main()
