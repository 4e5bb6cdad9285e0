"""One build in a process of its own: a job on stdin, events on stdout, a JSON object a line.

Why a process: Polygraphy decides when it is imported which of the two libraries it drives; a
builder that crashes takes nobody along; Ctrl-C ends a build between any two instructions; and
gigabytes of builder memory go back to the system after each component.

Job: module, onnx, plan, profiles (a list of {input: [min, opt, max shape]}), options, timing_cache.
Events: phase(name, parent, steps), step(name), end(name), warning(message), failed(kind, message),
done(bytes).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdexport.engines.messages import one_line

Send = Callable[..., None]
EVERY = 0.05
"""Seconds between two steps that are told."""
MOST = 6
"""Messages of one failure that are told: a graph may have the same trouble at a hundred nodes."""


def main() -> None:
    """Build what one line of JSON on stdin asks for, and report on what was stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to stdout
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(event: str, **values: Any) -> None:
        channel.write(json.dumps({"event": event} | values) + "\n")
        channel.flush()

    try:
        _build(job, send)
    except MemoryError:
        send("failed", kind="memory", message="not enough memory to build the engine")
    except OSError as error:
        send("failed", kind="file", message=f"{error.filename or 'plan'}: {error.strerror}")
    except Exception as error:  # noqa: BLE001  whatever it is, the parent has to hear of it
        send("failed", kind="builder", message=str(error) or type(error).__name__)
    os._exit(0)  # the thread that waits for the parent reads on


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _build(job: Mapping[str, Any], send: Send) -> None:
    rtx = job["module"] == "tensorrt_rtx"
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if rtx else "0"
    import importlib

    trt = importlib.import_module(job["module"])
    from polygraphy.backend import trt as polygraphy_trt
    from polygraphy.backend.trt import util as polygraphy_util
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = {"": G_LOGGER.CRITICAL + 1}
    messages: list[str] = []
    polygraphy_util.TRT_LOGGER = _recorder(trt, messages, send)
    try:
        builder, network, parser = polygraphy_trt.network_from_onnx_path(
            job["onnx"],
            # TensorRT 11 knows nothing else and may have no flag for it
            strongly_typed=hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
        )
    except PolygraphyException as error:
        send("failed", kind="parser", message=_told(messages, error))
        return
    _allow_decomposed_attention(trt, network)
    try:
        config = polygraphy_trt.create_config(
            builder, network, **_config(trt, polygraphy_trt, job, _monitor(trt, send))
        )
        _set_compute_capabilities(trt, config, job["options"]["compute_capabilities"])
        plan = polygraphy_trt.engine_bytes_from_network(
            (builder, network, parser), config, save_timing_cache=job["timing_cache"]
        )
    except PolygraphyException as error:
        send("failed", kind="builder", message=_told(messages, error))
        return
    with Path(job["plan"]).open("wb") as file:
        file.write(plan)
        file.flush()
        os.fsync(file.fileno())
    send("done", bytes=Path(job["plan"]).stat().st_size)


def _recorder(trt: Any, messages: list[str], send: Send) -> Any:
    class Recorder(trt.ILogger):  # type: ignore[misc]
        """Keeps what the parser and the builder say of errors: it names the nodes."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                messages.append(one_line(message))
            elif severity == trt.ILogger.Severity.WARNING:
                send("warning", message=one_line(message))

    return Recorder()


def _monitor(trt: Any, send: Send) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes the builder's phases on."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            send("phase", name=phase_name, parent=parent_phase, steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self._told > EVERY:
                self._told = time.monotonic()
                send("step", name=phase_name, step=step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            send("end", name=phase_name)

    return Monitor()


def _config(trt: Any, polygraphy_trt: Any, job: Mapping[str, Any], monitor: Any) -> dict[str, Any]:
    options = job["options"]
    profiles = []
    for shapes in job["profiles"]:
        profile = polygraphy_trt.Profile()
        for name, (smallest, best, largest) in shapes.items():
            profile.add(name, tuple(smallest), tuple(best), tuple(largest))
        profiles.append(profile)
    config: dict[str, Any] = {"profiles": profiles, "progress_monitor": monitor}
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
    if job["timing_cache"] and Path(job["timing_cache"]).is_file():
        config["load_timing_cache"] = job["timing_cache"]
    return config


def _allow_decomposed_attention(trt: Any, network: Any) -> None:
    """Let an Attention node without a kernel of its own (float32, odd widths) be built from others.

    Without it the builder gives up; with it nodes that have a kernel keep it.
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    if kind is None:
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer  # the binding gives the base class
            layer.attention.decomposable = True


def _set_compute_capabilities(trt: Any, config: Any, names: list[str]) -> None:
    if names:
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            value = getattr(trt.ComputeCapability, f"SM{name.replace('.', '')}", None)
            if value is None or not config.set_compute_capability(value, index):
                known = [n for n in trt.ComputeCapability.__members__ if n.startswith("SM")]
                dotted = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known)
                raise ValueError(f"no compute capability {name}; this library knows {dotted}")


def _told(messages: list[str], error: Exception) -> str:
    told = list(dict.fromkeys(messages))
    more = [f"and {len(told) - MOST} more"] if len(told) > MOST else []
    return "; ".join(told[:MOST] + more) or one_line(error)


if __name__ == "__main__":
    main()
