"""ONNX to plan, for TensorRT and TensorRT-RTX, through Polygraphy.

A plan is written with a sidecar beside it (engines.sidecar), which is the key of the cache: a plan
whose sidecar says what is asked for is not built again.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from engines.lock import locked
from engines.onnx_digest import graph_digest
from engines.onnx_specs import graph_specs
from engines.profiles import Profile, check_profiles, input_shapes
from engines.session import EngineError
from engines.sidecar import Sidecar, model_digest, sha256_of, sidecar_path, write_atomically
from engines.tensorrt_library import Library, library, polygraphy_version
from engines.tensorrt_options import BuildOptions, check_options, target

_log = logging.getLogger(__name__)
Progress = Callable[[str, float], object]
"""Called with the builder's phase and how much of the whole is done, 0..1."""


@dataclass(frozen=True)
class Built:
    """What `build_plan` did. built: False if the plan that was there is the one asked for."""

    plan: Path
    sidecar: Sidecar
    built: bool
    seconds: float


def build_plan(
    onnx: str | Path,
    plan: str | Path,
    *,
    backend: str,
    profiles: Sequence[Profile],
    options: BuildOptions | None = None,
    digest: str | None = None,
    timing_cache: str | Path | None = None,
    rebuild_stale: bool = False,
    progress: Progress = lambda phase, share: None,
) -> Built:
    """Build an engine, unless the one that is there is just that.

    Args:
      onnx: the .onnx file. plan: the .plan to write; its sidecar gets the same name and .json.
      backend: tensorrt or tensorrt-rtx.
      profiles: sizes of every dynamic dimension; several let a session pick the narrowest.
      digest: engines.sidecar.model_digest of `onnx` where it is known already.
      timing_cache: file that keeps what the builder measured, for later builds.
      rebuild_stale: replace a plan that was built from or for something else.
    Raises: ValueError: profiles or options that do not fit. FileNotFoundError: no such ONNX file.
      ImportError: the library or Polygraphy is not installed. EngineError: the build failed, needs
      a GPU that is not there, another process builds the same, or a stale plan is there.
      KeyboardInterrupt leaves nothing behind.
    """
    onnx, plan = Path(onnx), Path(plan)
    if not onnx.is_file():
        raise FileNotFoundError(f"no model file {onnx}")
    lib = library(backend)
    wanted = _wanted(onnx, plan.stem, backend, options or BuildOptions(), profiles, digest)
    started = time.perf_counter()
    with _writable(plan), locked(plan.with_suffix(".lock"), f"{plan.stem}: {plan.name}"):
        present = _present(plan, wanted, rebuild_stale)
        if present is not None:
            return Built(plan, present, False, 0.0)
        job = {
            "module": lib.module,
            "onnx": str(onnx),
            "profiles": [{s.name: input_shapes(s, p) for s in wanted.inputs} for p in profiles],
            "options": wanted.options,
            "timing_cache": str(timing_cache) if timing_cache else None,
        }
        sidecar = _build_and_rename(plan, wanted, job, lib, progress)
    return Built(plan, sidecar, True, time.perf_counter() - started)


def _wanted(
    onnx: Path,
    component: str,
    backend: str,
    options: BuildOptions,
    profiles: Sequence[Profile],
    digest: str | None,
) -> Sidecar:
    """The sidecar of the plan that is asked for, found to be one that can be built here."""
    lib = library(backend)
    version = lib.version()
    polygraphy_version()
    check_options(component, lib, options)
    inputs, outputs = graph_specs(onnx)
    check_profiles(component, inputs, profiles)
    return Sidecar(
        component=component,
        backend=backend,
        library_version=version,
        onnx_sha256=digest or model_digest(onnx),
        graph_sha256=graph_digest(onnx),
        target=target(lib, options),
        profiles=tuple(dict(profile) for profile in profiles),
        options=options.key(),
        inputs=inputs,
        outputs=outputs,
    )


@contextmanager
def _writable(plan: Path) -> Iterator[None]:
    try:
        plan.parent.mkdir(parents=True, exist_ok=True)
        yield
    except PermissionError as error:
        raise EngineError(
            f"{plan.parent} cannot be written; --engine-dir puts engines elsewhere"
        ) from error
    except OSError as error:
        if error.errno == 30:  # EROFS
            raise EngineError(
                f"{plan.parent} is on a read-only disk; --engine-dir puts engines elsewhere"
            ) from error
        raise


def _present(plan: Path, wanted: Sidecar, rebuild_stale: bool) -> Sidecar | None:
    """The sidecar of a plan that is the one wanted; None if it must be built."""
    if not plan.exists():
        return None
    try:
        found = Sidecar.read(plan)
        differences = found.differences(wanted)
    except (EngineError, FileNotFoundError) as error:
        found, differences = None, [str(error)]
    if found is not None and not differences:
        return found
    if not rebuild_stale:
        raise EngineError(
            f"{plan} is there and is not what is asked for: {'; '.join(differences)}; "
            "--rebuild-stale replaces it"
        )
    return None


def _build_and_rename(
    plan: Path, wanted: Sidecar, job: Mapping[str, Any], lib: Library, progress: Progress
) -> Sidecar:
    part = plan.with_name(f".{plan.name}.{os.getpid()}.part")
    try:
        _run_worker({**job, "plan": str(part)}, wanted.component, lib, progress)
        sidecar = replace(wanted, plan_size=part.stat().st_size, plan_sha256=sha256_of(part))
        # in this order a process that dies in between leaves no plan with a wrong sidecar
        sidecar_path(plan).unlink(missing_ok=True)
        os.replace(part, plan)
        write_atomically(sidecar_path(plan), sidecar.to_json())
    finally:
        part.unlink(missing_ok=True)
    return sidecar


def _run_worker(job: Mapping[str, Any], component: str, lib: Library, progress: Progress) -> None:
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "engines.tensorrt_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": path},
        )
        stdin, stdout = worker.stdin, worker.stdout
        assert stdin and stdout  # for the type checker: they are pipes
        ended, status = False, None
        try:
            with suppress(BrokenPipeError):
                stdin.write(json.dumps(job) + "\n")
                stdin.flush()
            ended = _follow(stdout, component, lib, progress)
            status = None if ended else worker.wait()
        finally:
            worker.kill()
            worker.wait()
            stdout.close()
            with suppress(BrokenPipeError):
                stdin.close()
        if not ended:
            raise EngineError(
                f"{component}: the {lib.name} builder died ({_status(status)}): {_last(noise)}"
            )


def _follow(lines: IO[str], component: str, lib: Library, progress: Progress) -> bool:
    """Pass events on until the build is done; False if they end before."""
    share = _Share()
    for line in lines:
        event = json.loads(line)
        kind = event["event"]
        if kind == "done":
            progress("done", 1.0)
            return True
        if kind == "failed":
            what = "cannot read the graph" if event["kind"] == "parser" else "cannot build"
            raise EngineError(f"{component}: {lib.name} {what}: {event['message']}")
        if kind == "warning":
            _log.info("%s: %s", component, event["message"])
        else:
            progress(event["name"], share.after(event))
    return False


class _Share:
    """How much of nested phases is done: a phase's steps, and within a step its inner phases."""

    def __init__(self) -> None:
        self._open: list[list[Any]] = []  # name, steps, done
        self._most = 0.0

    def after(self, event: Mapping[str, Any]) -> float:
        name = event["name"]
        if event["event"] == "phase":
            self._open.append([name, max(event["steps"], 1), 0])
        for phase in reversed(self._open):
            if phase[0] == name:
                if event["event"] == "step":
                    phase[2] = min(event["step"] + 1, phase[1])
                elif event["event"] == "end":
                    self._open.remove(phase)
                break
        share, size = 0.0, 1.0
        for _, steps, done in self._open:
            share += size * done / steps
            size /= steps
        # phases of one name come again and again: never let the bar run backwards
        self._most = max(self._most, min(share, 1.0))
        return self._most


def _status(status: int | None) -> str:
    if status in (-9, 137):
        return "killed, perhaps for memory"
    return f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"


def _last(noise: IO[str]) -> str:
    noise.seek(0)
    lines = [line.strip() for line in noise.read()[-4000:].splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
