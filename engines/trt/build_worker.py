"""One TensorRT build in a separate process; see worker_process for the protocol.

Why a process: Polygraphy decides at import which of the two libraries it drives; a crash of the
builder ends only the worker; Ctrl-C ends a build at any point; and the builder's gigabytes of
memory are free after each component.

Request: build(job), with module, onnx, plan, profiles (a list of {input: [min, opt, max shape]}),
options and timing_cache. Events: phase(name, parent, steps), step(name, step), end(name),
warning(message). Result: {"bytes": N}, or {"failed": KIND, "message": TEXT}.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import open_guarded
from sdexport.engines.messages import one_line
from sdexport.engines.trt.engine_layers import (
    HEADER,
    Attention,
    EngineLayers,
    layers_path,
    parse_layers,
)
from sdexport.engines.trt.network_attention import find_attention
from sdexport.engines.trt.supported_gpus import member
from sdexport.engines.trt.unsupported_nodes import explained, rejected_nodes
from sdexport.engines.worker_process import Channel

Report = Callable[..., None]
STEP_INTERVAL = 0.05
"""Least seconds between two reported steps."""
TIMING_CACHE_LIMIT = 2**28
"""Bytes of a timing cache."""
MAX_MESSAGES = 6
"""Most messages reported for one failure: a graph may have the same problem at many nodes."""


def main() -> None:
    """Handle requests until stdin ends."""
    channel = Channel()
    channel.serve({"build": lambda job: build(job, channel.report)})


def build(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Build a plan; a failure is part of the result."""
    try:
        return _build(job, report)
    except MemoryError:
        return _failed("memory", "not enough memory to build the engine")
    except OSError as error:
        return _failed("file", f"{error.filename or 'plan'}: {error.strerror}")
    except Exception as error:  # noqa: BLE001  the parent reports it, whatever it is
        return _failed("builder", str(error) or type(error).__name__)


def _failed(kind: str, message: str) -> dict[str, Any]:
    return {"failed": kind, "message": message}


def _build(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    rtx = job["module"] == "tensorrt_rtx"
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if rtx else "0"
    trt = importlib.import_module(job["module"])
    from polygraphy.backend import trt as polygraphy_trt
    from polygraphy.backend.trt import util as polygraphy_util
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = {"": G_LOGGER.CRITICAL + 1}
    messages: list[str] = []
    listed: list[str] = []
    polygraphy_util.TRT_LOGGER = _recorder(trt, messages, listed, report)
    try:
        builder, network, parser = polygraphy_trt.network_from_onnx_path(
            job["onnx"],
            # TensorRT 11 networks are always strongly typed, and it may not have this flag
            strongly_typed=hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
        )
    except PolygraphyException as error:
        summary = _summary(messages, error)
        rejected = rejected_nodes(trt, polygraphy_util.TRT_LOGGER, job["onnx"])
        return _failed("parser", explained(rejected) or summary)
    attention = [Attention(**found) for found in find_attention(trt, network)]
    try:
        config = polygraphy_trt.create_config(
            builder, network, **_config(trt, polygraphy_trt, job, _monitor(trt, report))
        )
        _set_compute_capabilities(trt, config, job["options"]["compute_capabilities"])
        plan = polygraphy_trt.engine_bytes_from_network(
            (builder, network, parser), config, save_timing_cache=job["timing_cache"]
        )
    except PolygraphyException as error:
        return _failed("builder", _summary(messages, error))
    path = Path(job["plan"])  # in a folder of its own; see engine_store
    _write(path, plan)
    if layers := parse_layers(listed):
        text = EngineLayers(layers, tuple(attention)).to_json()
        _write(layers_path(path), text.encode())
    return {"bytes": path.stat().st_size}


def _write(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _recorder(trt: Any, messages: list[str], listed: list[str], report: Report) -> Any:
    class Recorder(trt.ILogger):  # type: ignore[misc]
        """Keeps the errors of the parser and the builder, which name the nodes, in `messages`.

        The builder's lists of layers go to `listed`.
        """

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                messages.append(one_line(message))
            elif severity == trt.ILogger.Severity.WARNING:
                report("warning", message=one_line(message))
            elif message.startswith(HEADER):
                listed.append(message)

    return Recorder()


def _monitor(trt: Any, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Reports the builder's phases."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._last_step = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            report("phase", name=phase_name, parent=parent_phase, steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self._last_step > STEP_INTERVAL:
                self._last_step = time.monotonic()
                report("step", name=phase_name, step=step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            report("end", name=phase_name)

    return Monitor()


def _config(trt: Any, polygraphy_trt: Any, job: Mapping[str, Any], monitor: Any) -> dict[str, Any]:
    """Arguments of Polygraphy's create_config."""
    options = job["options"]
    profiles = []
    for shapes in job["profiles"]:
        profile = polygraphy_trt.Profile()
        for name, (smallest, best, largest) in shapes.items():
            profile.add(name, tuple(smallest), tuple(best), tuple(largest))
        profiles.append(profile)
    config: dict[str, Any] = {
        "profiles": profiles,
        "progress_monitor": monitor,
        # lists the layers in the log; the plan is the same
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
    }
    for ours, theirs in (
        ("refittable", "refittable"),
        ("weight_stripped", "strip_plan"),
        ("version_compatible", "version_compatible"),
        ("weight_streaming", "weight_streaming"),
    ):
        if options[ours]:
            config[theirs] = True
    if options["optimization_level"] is not None:
        config["builder_optimization_level"] = options["optimization_level"]
    if options["workspace"] is not None:
        config["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options["workspace"]}
    if options["hardware_compatible"]:
        config["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if job["timing_cache"]:
        with suppress(FileNotFoundError):  # it is written after the first build
            path = Path(job["timing_cache"])
            open_guarded(path, error=EngineError, limit=TIMING_CACHE_LIMIT).close()
            config["load_timing_cache"] = str(path)  # Polygraphy locks it by its name
    return config


def _set_compute_capabilities(trt: Any, config: Any, names: list[str]) -> None:
    """Set those that were checked before; see supported_gpus.

    Raises: ValueError: the library rejects one of them.
    """
    if names:
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            if not config.set_compute_capability(member(trt, name), index):
                raise ValueError(f"the library rejects compute capability {name}")


def _summary(messages: list[str], error: Exception) -> str:
    """The first distinct messages in one line; the error itself if there are none."""
    distinct = list(dict.fromkeys(messages))
    rest = [f"and {len(distinct) - MAX_MESSAGES} more"] if len(distinct) > MAX_MESSAGES else []
    return "; ".join(distinct[:MAX_MESSAGES] + rest) or one_line(error)


if __name__ == "__main__":
    main()
