"""ONNX to plan, for TensorRT and TensorRT-RTX, through Polygraphy.

cache.engine_store writes plan and sidecar, and keeps a plan that is what is asked for.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sdexport.engines.cache.engine_store import Built, build_once, worker_environment
from sdexport.engines.cache.profiles import Profile, check_profiles, input_shapes
from sdexport.engines.cache.sidecar import Sidecar, model_digest
from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.trt.build_options import BuildOptions, check_options, target
from sdexport.engines.trt.library import Library, library, polygraphy_version

_log = logging.getLogger(__name__)
Progress = Callable[[str, float], object]
"""Called with the builder's phase and how much of the whole is done, 0..1."""


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
      digest: sdexport.engines.cache.sidecar.model_digest of `onnx` where it is known already.
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
    shapes = [{s.name: input_shapes(s, p) for s in wanted.inputs} for p in profiles]
    job = {
        "module": lib.module,
        "onnx": str(onnx),
        "profiles": shapes,
        "options": wanted.options,
        "timing_cache": str(timing_cache) if timing_cache else None,
    }

    def make(folder: Path) -> None:
        _run_worker({**job, "plan": str(folder / plan.name)}, wanted.component, lib, progress)

    return build_once(plan, wanted, make, rebuild_stale=rebuild_stale)


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


def _run_worker(job: Mapping[str, Any], component: str, lib: Library, progress: Progress) -> None:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "sdexport.engines.trt.build_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            encoding="utf-8",
            env=os.environ | worker_environment(),
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
