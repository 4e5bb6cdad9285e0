"""From the start of a process to its first and its second image, compared with other programs.

    python -m benchmarks.startup --work DIR [--model demo|sd15] [--only NAME]... [--skip NAME]...

Ours is the command line, `sdexport generate` with two prompts; the others are scripts as a user
would write them (benchmarks/peers/*_start.py). Each runs alone, in a new process, with two files
that it writes as the marks of time: once with the model's files in the system's file cache, once
without. What a program keeps from process to process starts empty, so its first process and a
later one are reported apart; what ours stores in the background is complete by then, and where
graphs are prepared, it is as `sdexport build` leaves it. Both images are compared with those of
diffusers in float32, which always runs. Ours, and every one in float32, has no times if an image
differs; other libraries with lower precision are timed all the same, and the report says so. All is
saved after each process.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import file_cache, startup_imports, startup_table
from benchmarks.arguments import RESULTS
from benchmarks.contenders import OURS, ROOT
from benchmarks.latency import EXACT, ROUNDED
from benchmarks.models import made
from benchmarks.reports import read, save
from benchmarks.startup_process import ProcessFailedError, measured, wait_for_stores
from benchmarks.startup_programs import (
    PROGRAMS,
    REFERENCE,
    Job,
    Program,
    chosen,
    command,
    environment,
    prepare,
)
from sdexport import TorchGenerator
from sdexport.bench.measure import machine
from sdexport.bench.workload import prompt_of
from sdexport.engines.errors import WorkerError

MODELS = {"demo": ("embedded", 128, 20, 3), "sd15": ("sd15", 256, 5, 1)}
"""Name -> model of benchmarks.models, size in pixels, steps, rounds."""
PROMPTS = {
    "demo": (
        "a large red circle on a white background",
        "a small blue star on a white background",
    ),
    "sd15": (prompt_of(0), prompt_of(1)),
}
"""The demo model knows shapes only: rounding turns images of anything else into others."""
OTHER_SEED = 0.25
"""An image may differ by this share of what an image of another seed differs by, at most."""
Rows = list[dict[str, Any]]


class Startup:
    """The runs of one model; `save` is called with the rows after each process."""

    def __init__(
        self, job: Job, scratch: Path, run: str, save: Callable[[dict[str, Any]], None]
    ) -> None:
        self._job, self._scratch, self._run, self._save = job, scratch, run, save
        self._reference = scratch / "reference"
        self._folders: dict[str, list[Path]] = {}
        self._spread = 0.0

    def measure(self, programs: Sequence[Program], rounds: int, *, cold: bool) -> None:
        """All rounds with warm files, and each program once more with cold ones in the last."""
        for number in range(rounds):
            last = number == rounds - 1
            for program in programs:
                for process in program.processes:
                    self._one(program, process, "warm", first_round=number == 0)
                if cold and last:
                    self._one(program, program.processes[-1], "cold", first_round=False)
                if last:  # what programs keep of SD 1.5 would take 17 GB together
                    shutil.rmtree(self._cache(program), ignore_errors=True)

    def _cache(self, program: Program) -> Path:
        return self._scratch / "caches" / program.name.replace(" ", "-")

    def _one(self, program: Program, process: str, files: str, *, first_round: bool) -> None:
        row: dict[str, Any] = {
            "name": program.name,
            "library": program.library,
            "precision": program.precision,
            "prepared": program.prepared,
            "process": process,
            "files": files,
            "run": self._run,
        }
        cache = self._cache(program)
        if process == "first":
            shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        try:
            row |= self._timed(program, cache, files, references=first_round)
            wait_for_stores()
        except (WorkerError, ProcessFailedError) as error:
            row["error"] = str(error)
        said = row.get("error") or " and ".join(f"{s:.2f} s" for s in row["images_s"])
        spent = time.monotonic() - began
        print(f"{program.name}, {process} process, {files}: {said}  [{spent:.0f} s]", flush=True)
        self._save(row)
        if program is REFERENCE and "error" in row and not self._reference.exists():
            raise SystemExit("nothing to compare images with")

    def _timed(
        self, program: Program, cache: Path, files: str, *, references: bool
    ) -> dict[str, Any]:
        is_empty = not any(cache.iterdir())
        if program.name not in self._folders or (program.prepared and is_empty):
            self._folders[program.name] = prepare(program, self._job, cache)
        folders = [*self._folders[program.name], cache]
        outputs = self._scratch / "images"
        shutil.rmtree(outputs, ignore_errors=True)
        outputs.mkdir()
        job = self._job.with_outputs(outputs)
        references = references and program is REFERENCE
        if references:
            job = _with_references(job)
        # memory is free then, and the disk idle: whatever ran before has no effect
        file_cache.drop([job.model.checkpoint.parent, *folders])
        if files == "warm":
            file_cache.warm(folders)
        cached = file_cache.cached_share(folders)
        words = command(program, job, folders, cache)
        paths = [Path(image["output"]) for image in job.images]
        found = measured(words, paths, env=environment(cache))
        found["images_s"] = found["images_s"][: len(self._job.images)]
        if references:
            shutil.rmtree(self._reference, ignore_errors=True)
            outputs.rename(self._reference)
            first, second = (_pixels(self._reference / f"{i}.png") for i in (0, 1))
            self._spread = float(np.abs(first - second).mean())
            check = [{"mean": 0.0, "bound": 0.0, "passed": True}] * len(self._job.images)
        else:
            check = [self._checked(program, i, outputs) for i in range(len(self._job.images))]
        return found | {"cached_before": round(cached, 3), "check": check}

    def _checked(self, program: Program, number: int, outputs: Path) -> dict[str, Any]:
        """Mean difference of an image from the reference, of 255.

        Raises: WorkerError: too large for the same image; not where another library rounds.
        """
        name = f"{number}.png" if program.spacing is None else f"{program.spacing}-{number}.png"
        expected, actual = _pixels(self._reference / name), _pixels(outputs / f"{number}.png")
        if actual.shape != expected.shape:
            raise WorkerError(f"image {number} has the shape {actual.shape}")
        mean = float(np.abs(actual - expected).mean())
        bound = (EXACT if program.precision == "fp32" else ROUNDED)["image"]
        bound = min(bound, OTHER_SEED * self._spread)
        exact = program.precision == "fp32" or program.library == OURS
        if not mean <= bound and exact:
            raise WorkerError(
                f"image {number} differs from the reference by {mean:.3g} of 255 on average; the "
                f"bound is {bound:.3g}"
            )
        return {"mean": round(mean, 4), "bound": round(bound, 4), "passed": mean <= bound}


def _with_references(job: Job) -> Job:
    """The same with further images, for programs that space the timesteps in another way."""
    folder = Path(job.images[0]["output"]).parent
    extra = [
        {**image, "spacing": spacing, "output": str(folder / f"{spacing}-{i}.png")}
        for spacing in dict.fromkeys(p.spacing for p in PROGRAMS.values() if p.spacing)
        for i, image in enumerate(job.images)
    ]
    return replace(job, images=[*job.images, *extra])


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float64)


def _images(prompts: Sequence[str], size: int, scratch: Path) -> list[dict[str, Any]]:
    """Prompt, seed and latents of each image; the latents are the noise of that seed."""
    found = []
    for number, prompt in enumerate(prompts):
        latents = scratch / f"latents-{number}.npy"
        np.save(latents, TorchGenerator(number).randn((1, 4, size // 8, size // 8)))
        found.append({"prompt": prompt, "seed": number, "latents": str(latents)})
    return found


def _without(rows: Rows, row: dict[str, Any], programs: Sequence[str]) -> Rows:
    """The rows of known programs that a run of `row` leaves as they are."""
    keys = ("name", "process", "files")
    return [
        other
        for other in rows
        if other["name"] in programs
        and (other["run"] == row["run"] or any(other[k] != row[k] for k in keys))
    ]


def compile_ours() -> None:
    """Compile our modules to bytecode, as pip does when it installs a package."""
    for folder in ("sdexport", "sdexport/runtime", "sdexport/engines"):  # links are not followed
        compileall.compile_dir(ROOT / folder, quiet=2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.startup",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="as for the other benchmarks")
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for reports")
    parser.add_argument(
        "--tokenizer", type=Path, default=os.environ.get("CLIP_TOKENIZER"), help="as elsewhere"
    )
    parser.add_argument("--only", action="append", default=[], help="beginning of a program's name")
    parser.add_argument("--skip", action="append", default=[], help="beginning of a program's name")
    parser.add_argument("--rounds", type=int, help="with warm files; default 3, sd15 1")
    parser.add_argument("--no-cold", action="store_true", help="only with warm files")
    args = parser.parse_args()
    try:
        programs = chosen(args.only, args.skip)
    except ValueError as error:
        parser.error(str(error))
    compile_ours()
    work, here = args.work.resolve(), machine()
    path = args.results.resolve() / f"startup-{startup_table.slug(here)}.json"
    name, size, steps, rounds = MODELS[args.model]
    model = made(name, work, args.tokenizer and Path(args.tokenizer))
    report = read(path)
    report["models"] = models = report.get("models", {})
    if not (args.only or args.skip):
        models.pop(args.model, None)
    found = models.setdefault(args.model, {"rows": []})
    found |= {"size": [size, size], "num_inference_steps": steps, "method": file_cache.METHOD}
    found["machine"] = here

    def add(row: dict[str, Any]) -> None:
        found["rows"] = [*_without(found["rows"], row, list(PROGRAMS)), row]
        save(report, path)

    if args.model == "demo":
        report["imports"] = {"machine": here, **startup_imports.measure()}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        scratch = Path(folder)
        job = Job(model, size, steps, _images(PROMPTS[args.model], size, scratch), work)
        run = datetime.now(UTC).isoformat(timespec="seconds")
        startup = Startup(job, scratch, run, add)
        startup.measure(programs, args.rounds or rounds, cold=not args.no_cold)
    print(path)


if __name__ == "__main__":
    main()
