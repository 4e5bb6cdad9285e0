"""The libraries that are timed, each a worker process in its own environment.

The environments of other libraries are created once in the work folder, from
benchmarks/peers/*.txt. A library that cannot be installed, prepared or opened is reported with its
error.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.models import Model
from sdexport.engines.errors import WorkerError
from sdexport.engines.worker_process import Worker

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
OURS = "sdexport"


@dataclass(frozen=True)
class Contender:
    """One library with one set of options.

    Attributes:
      library: `sdexport`, or the stem of a worker in benchmarks/peers.
      precision: of its arithmetic.
      options: of the worker's `open` request.
      memory: peak without memory-mapped files, as a multiple of the fp32 weights; measured.
      scheduler: GenAI's LMS differs from diffusers' for "leading" timesteps, its Euler does not;
        with two steps the two are the same.
      prepares: the library exports the checkpoint itself.
      engines: uses what `sdexport build` wrote for its backend.
      slow: run only with --slow.
      memory_only: left out where seconds are measured.
    """

    name: str
    library: str
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: float = 1.5
    scheduler: str = "lms"
    prepares: bool = False
    engines: bool = False
    slow: bool = False
    memory_only: bool = False

    @property
    def exact(self) -> bool:
        return self.precision == "fp32"


CONTENDERS = {
    c.name: c
    for c in (
        Contender("diffusers fp32", "diffusers", memory=1.15),
        Contender("optimum fp32", "optimum", prepares=True, memory=1.4),
        Contender(
            "sdexport onnxruntime fp32", OURS, options={"backend": "onnxruntime"}, memory=1.1
        ),
        Contender(
            "sdexport onnxruntime fp32 prepared",
            OURS,
            options={"backend": "onnxruntime", "options": {"low_memory": True}},
            engines=True,
            memory=0.9,  # mapped pages, without which it would read from the disk
        ),
        Contender("sdexport openvino fp32", OURS, options={"backend": "openvino"}),
        Contender(
            "sdexport onnxruntime fp32 low memory",
            OURS,
            options={"backend": "onnxruntime", "options": {"low_memory": True}},
            memory_only=True,
        ),
        Contender(
            "openvino-genai fp32", "openvino_genai", prepares=True, scheduler="euler", memory=1.1
        ),
        Contender(
            "diffusers compiled fp32",
            "diffusers",
            options={"compiled": True},
            slow=True,
            memory=1.4,
        ),
        Contender(
            "sdexport openvino bf16",
            OURS,
            "bf16",
            {"backend": "openvino", "options": {"precision": "bf16"}},
            memory=0.85,
        ),
        Contender(
            "sdexport openvino i8",
            OURS,
            "i8",
            {"backend": "openvino", "options": {"precision": "i8"}},
            memory=0.7,
        ),
        Contender("diffusers bf16", "diffusers", "bf16", {"dtype": "bfloat16"}, memory=0.7),
        Contender(
            "openvino-genai bf16",
            "openvino_genai",
            "bf16",
            {"precision": "bf16"},
            prepares=True,
            scheduler="euler",
            memory=0.75,
        ),
        Contender(
            "diffusers bf16 channels_last",
            "diffusers",
            "bf16",
            {"dtype": "bfloat16", "channels_last": True},
            memory=0.8,
        ),
        Contender(
            "diffusers compiled bf16",
            "diffusers",
            "bf16",
            {"dtype": "bfloat16", "compiled": True},
            slow=True,
            memory=0.9,
        ),
    )
}


def chosen(names: Sequence[str], *, slow: bool = False, memory: bool = False) -> list[Contender]:
    """The contenders with these names or beginnings of names; all of them if `names` is empty.

    Args:
      slow: without names, also those that are slow.
      memory: also those for which only memory is measured.
    Raises: ValueError: a name that fits no contender.
    """
    known = [c for c in CONTENDERS.values() if memory or not c.memory_only]
    if not names:
        return [c for c in known if slow or not c.slow]
    for name in names:
        if not any(c.name.startswith(name) for c in known):
            among = ", ".join(c.name for c in known)
            raise ValueError(f"no contender '{name}'; choose among {among}")
    exact = {c.name for c in known} & set(names)
    begun = tuple(name for name in names if name not in exact)
    return [c for c in known if c.name in exact or (begun and c.name.startswith(begun))]


def start(contender: Contender, model: Model, work: Path) -> tuple[Worker, dict[str, Any]]:
    """Start a worker and open the model in it.

    Returns: the worker, and its response to `open`.
    Raises: WorkerError: it cannot be installed, prepared or opened.
    """
    folder, options = prepared_folder(contender, model, work), dict(contender.options)
    if contender.engines:
        engine_dir = _engines(options["backend"], model, work)
        options["options"] = {**options.get("options", {}), "engine_dir": str(engine_dir)}
    worker = Worker(_command(contender, work), {"PYTHONPATH": str(ROOT)})
    try:
        opened = worker.request("open", model=str(folder), **options)
    except WorkerError:
        worker.close()
        raise
    return worker, opened


def groups(
    contenders: Sequence[Contender], model: Model, memory_gb: float
) -> list[list[Contender]]:
    """Split contenders into groups that fit into memory; fp32 ones are not mixed with others.

    The first fp32 contender is in every fp32 group as the reference, and likewise for the others.
    """
    found: list[list[Contender]] = []
    for contender in contenders:
        alike = [group for group in found if group[0].exact == contender.exact]
        if not alike:
            found.append([contender])
            continue
        used = sum(c.memory for c in alike[-1]) + contender.memory
        if used * model.weights_gb > memory_gb and len(alike[-1]) > 1:
            found.append([alike[0][0], contender])
        else:
            alike[-1].append(contender)
    return found


def python_of(library: str, work: Path) -> Path:
    """The interpreter of a library's environment, which is created if its requirements changed.

    Raises: WorkerError: pip failed.
    """
    if library == OURS:
        return Path(sys.executable)
    requirements = PEERS / f"{library}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    folder = work / "venvs" / library
    stamp = folder / "installed"
    python = folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_text(encoding="ascii") != digest:
        venv.create(folder, clear=True, with_pip=True)
        pip = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        _run([*pip, "--requirement", requirements], f"installing {requirements.name}")
        stamp.write_text(digest, encoding="ascii")
    return python


def _command(contender: Contender, work: Path) -> list[str | Path]:
    python = python_of(contender.library, work)
    if contender.library == OURS:
        return [python, "-m", "sdexport.bench.bench_worker"]
    return [python, PEERS / f"{contender.library}_worker.py"]


def prepared_folder(contender: Contender, model: Model, work: Path) -> Path:
    """The model in the form that the contender reads; exported by its own library if it can.

    Raises: WorkerError: its export failed.
    """
    if contender.library == OURS:
        return model.package
    if not contender.prepares:
        return model.checkpoint
    folder = work / model.name / contender.library
    done = folder / "prepared"
    if not done.is_file():
        python = python_of(contender.library, work)
        worker = PEERS / f"{contender.library}_worker.py"
        what = f"{contender.library}'s own export"
        _run([python, worker, "prepare", model.checkpoint, folder], what)
        done.write_text("", encoding="ascii")
    return folder


def _engines(backend: str, model: Model, work: Path) -> Path:
    """Engines of the package; stale ones are rebuilt."""
    folder = work / model.name / "engines"
    build = [sys.executable, "-m", "sdexport", "build", model.package, "--backend", backend]
    _run([*build, "--engine-dir", folder, "--rebuild-stale"], f"engines for {backend}")
    return folder


def _run(command: Sequence[str | Path], what: str) -> None:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise WorkerError(f"{what} failed: {lines[-1] if lines else done.returncode}"[:500])
