"""The programs that benchmarks.startup times: each generates two images and ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import OURS, PEERS, ROOT, Contender, prepared_folder, python_of
from benchmarks.models import Model
from sdexport.engines.errors import WorkerError

GUIDANCE = 7.5
SETTLED_S = 12.0
"""Hashes of files that changed in the last ten seconds are not remembered."""


@dataclass(frozen=True)
class Program:
    """One way to generate an image from the command line.

    Attributes:
      library: sdexport, or the stem of a script in benchmarks/peers.
      precision: of its arithmetic.
      backend: of sdexport, with options, as `generate --backend` takes it.
      prepared: uses what `sdexport build` wrote.
      exporter: the library whose export is read; without it the checkpoint is.
      environment: the library whose environment it runs in; default its own.
      keeps: it keeps something from process to process, so that a later one may start faster.
      against: the program that it is compared with.
      goal: seconds to the first image as a share of that program's, by kind of process.
      spacing: of its timesteps, if it knows no other than this.
    """

    name: str
    library: str = OURS
    precision: str = "fp32"
    backend: str = ""
    prepared: bool = False
    exporter: str = ""
    environment: str = ""
    keeps: bool = False
    goal: Mapping[str, float] | None = None
    spacing: str | None = None

    @property
    def against(self) -> str:
        return "diffusers bf16" if self.precision in ("bf16", "i8") else "diffusers fp32"

    @property
    def processes(self) -> tuple[str, ...]:
        return ("first", "later") if self.keeps else ("first",)


def _ours(backend: str, precision: str = "fp32") -> tuple[Program, Program]:
    """A backend without and with preparation."""
    words = backend if precision == "fp32" else f"{backend},precision={precision}"
    name = f"{OURS} {backend} {precision}"
    share = {"openvino": 0.45, "onnxruntime": 0.6}[backend]
    later, both = {"later": 0.6}, {"first": share, "later": share}
    if precision == "i8":  # diffusers has no such precision
        later, both = {}, {}
    return (
        Program(name, precision=precision, backend=words, keeps=True, goal=later),
        Program(
            f"{name} prepared",
            precision=precision,
            backend=words,
            prepared=True,
            keeps=True,
            goal=both,
        ),
    )


REFERENCE = Program("diffusers fp32", "diffusers")
PROGRAMS = {
    program.name: program
    for program in (
        REFERENCE,
        Program("diffusers bf16", "diffusers", "bf16"),
        *_ours("onnxruntime"),
        *_ours("openvino"),
        *_ours("openvino", "bf16"),
        *_ours("openvino", "i8"),
        Program("optimum fp32", "optimum", exporter="optimum"),
        *(
            Program(
                f"optimum-intel {precision}",
                "optimum_intel",
                precision,
                exporter="openvino_genai",
                environment="openvino_genai",
                keeps=True,
            )
            for precision in ("fp32", "bf16")
        ),
        *(
            Program(
                f"openvino-genai {precision}",
                "openvino_genai",
                precision,
                exporter="openvino_genai",
                keeps=True,
            )
            for precision in ("fp32", "bf16")
        ),
        Program(
            "stable-diffusion.cpp",
            "stable_diffusion_cpp",
            exporter="stable_diffusion_cpp",
            spacing="linspace",
        ),
    )
}


def chosen(only: Sequence[str], skip: Sequence[str]) -> list[Program]:
    """The programs whose names begin with one of `only` and with none of `skip`.

    Those that a chosen one is compared with come first, and are always among them.
    Raises: ValueError: a beginning that fits no program.
    """
    for word in (*only, *skip):
        if not any(name.startswith(word) for name in PROGRAMS):
            raise ValueError(f"no program '{word}'; choose among {', '.join(PROGRAMS)}")
    names = [
        name
        for name in PROGRAMS
        if (not only or name.startswith(tuple(only))) and not name.startswith(tuple(skip) or "\0")
    ]
    needed = {REFERENCE.name, *(PROGRAMS[name].against for name in names), *names}
    return [program for name, program in PROGRAMS.items() if name in needed]


@dataclass(frozen=True)
class Job:
    """What every program generates.

    Attributes:
      size: in pixels. images: each with prompt, seed, latents and output.
    """

    model: Model
    size: int
    steps: int
    images: Sequence[Mapping[str, Any]]
    work: Path

    def with_outputs(self, folder: Path) -> Job:
        """The same, written to `folder` as 0.png, 1.png ..."""
        images = [
            {**image, "output": str(folder / f"{i}.png")} for i, image in enumerate(self.images)
        ]
        return Job(self.model, self.size, self.steps, images, self.work)


def prepare(program: Program, job: Job, cache: Path) -> list[Path]:
    """Install, export and build what a program needs.

    Args:
      cache: the folder of `environment`.
    Returns: the folders of the model's files that it reads.
    Raises: WorkerError: something failed.
    """
    if program.library != OURS:
        python_of(program.environment or program.library, job.work)
        if not program.exporter:
            return [job.model.checkpoint]
        exporter = Contender("", program.exporter, prepares=True)
        return [prepared_folder(exporter, job.model, job.work)]
    if not program.prepared:
        return [job.model.package]
    folder = engine_folder(program, job)
    build = [sys.executable, "-m", "sdexport", "build", str(job.model.package)]
    backend, _, option = program.backend.partition(",")
    build += ["--backend", backend, "--engine-dir", str(folder), "--rebuild-stale", "--quiet"]
    if backend == "openvino":  # for one size and one precision
        build += ["--height", str(job.size), "--width", str(job.size)]
        build += ["--precision", option.partition("=")[2] or "f32"]
    variables = {**os.environ, **environment(cache)}
    done = subprocess.run(build, capture_output=True, text=True, env=variables)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise WorkerError(f"sdexport build failed: {lines[-1] if lines else done.returncode}"[:300])
    wait_until_settled(folder)
    return [job.model.package, folder]


def wait_until_settled(folder: Path) -> None:
    """Wait until no file is so new that its hash would not be remembered, as on any other day."""
    newest = max(path.stat().st_mtime for path in folder.rglob("*"))
    time.sleep(min(max(newest + SETTLED_S - time.time(), 0.0), SETTLED_S))


def engine_folder(program: Program, job: Job) -> Path:
    return job.work / job.model.name / f"start-engines-{program.backend.replace(',', '-')}"


def command(program: Program, job: Job, folders: Sequence[Path], cache: Path) -> list[str | Path]:
    """The command line of one process.

    Args:
      folders: see `prepare`.
      cache: a folder for a library that is told where to keep its own.
    """
    if program.library == OURS:
        return _our_command(program, job)
    task = {
        "model": str(folders[0]),
        "precision": program.precision,
        "size": job.size,
        "steps": job.steps,
        "guidance_scale": GUIDANCE,
        "images": list(job.images),
        "cache": str(cache),
    }
    python = python_of(program.environment or program.library, job.work)
    return [python, PEERS / f"{program.library}_start.py", json.dumps(task)]


def _our_command(program: Program, job: Job) -> list[str | Path]:
    outputs = [Path(image["output"]) for image in job.images]
    jobs = outputs[0].parent / "jobs.jsonl"
    lines = [json.dumps({key: image[key] for key in ("prompt", "seed")}) for image in job.images]
    jobs.write_text("\n".join(lines) + "\n", encoding="utf-8")
    size = f"{job.size}x{job.size}"
    found: list[str | Path] = [sys.executable, "-m", "sdexport", "generate", job.model.package]
    found += ["--prompts", jobs, "-o", outputs[0].parent / "{index}.png", "--quiet"]
    found += ["--steps", str(job.steps), "--size", size, "--guidance", str(GUIDANCE)]
    found += ["--scheduler", "euler", "--backend", program.backend, "--engine-dir"]
    # a folder that does not exist, so that nothing that was built is found by chance
    folder = engine_folder(program, job) if program.prepared else outputs[0].parent / "no-engines"
    return [*found, folder]


def environment(cache: Path) -> dict[str, str]:
    """Variables of every process: caches of its own, nothing from a hub."""
    return {
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(cache),
        "SDEXPORT_CACHE": str(cache / "sdexport"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache / "huggingface"),
    }
