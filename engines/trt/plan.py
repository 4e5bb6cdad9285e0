"""From a plan on disk to an engine: checked, loaded, refitted; and TensorRT-RTX's runtime cache."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdexport.engines import cuda_device
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.errors import EngineError
from sdexport.engines.files import write_atomically
from sdexport.engines.messages import one_line
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.trt.library import Library, library

_log = logging.getLogger(__name__)


def build_command(backend: str, component: str) -> str:
    """The command that builds a component's plan, for messages."""
    return f"sdexport build PACKAGE --backend {backend} --component {component}"


def read_sidecar(plan: Path, backend: str, component: str) -> Sidecar:
    """The sidecar of a plan.

    Raises: FileNotFoundError, EngineError: none, or a damaged one; with the command that builds.
    """
    command = build_command(backend, component)
    try:
        return Sidecar.read(plan)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{component}: {error}; build it: {command}") from None
    except EngineError as error:
        raise EngineError(
            f"{component}: {error}; build it again: {command} --rebuild-stale"
        ) from error


def differences(
    sidecar: Sidecar,
    onnx: Path,
    backend: str,
    *,
    digest: str | None,
    version: str | None,
    gpu: cuda_device.Gpu | None,
) -> list[str]:
    """What keeps a plan from running an ONNX file here, in words.

    Args:
      digest: sidecar.model_digest of `onnx`. version: of the library. None: not compared.
    """
    found = []
    if digest not in (None, sidecar.onnx_sha256):
        same = sidecar.graph_sha256 == graph_digest(onnx)
        if not sidecar.takes_weights(sidecar.graph_sha256 if same else ""):
            hint = ", of the same graph: --refittable would take its weights" if same else ""
            found.append(f"it was built from another ONNX file{hint}")
    if sidecar.backend != backend:
        found.append(f"it was built for {sidecar.backend}")
    built = sidecar.library_version
    if version not in (None, built) and not sidecar.options.get("version_compatible"):
        found.append(f"it was built with {library(backend).name} {built}, here is {version}")
    return found + ([] if gpu is None else _target_differences(sidecar, gpu))


def check_fits(
    sidecar: Sidecar, onnx: Path, backend: str, gpu: cuda_device.Gpu, digest: str | None
) -> None:
    """Raises: EngineError: the plan was built from, with or for something else; says what."""
    version = library(backend).version()
    found = differences(sidecar, onnx, backend, digest=digest, version=version, gpu=gpu)
    if found:
        command = build_command(backend, sidecar.component)
        raise EngineError(
            f"{sidecar.component}: this engine does not fit: {'; '.join(found)}; "
            f"build it again: {command} --rebuild-stale"
        )


def _target_differences(sidecar: Sidecar, gpu: cuda_device.Gpu) -> list[str]:
    target, have = sidecar.target, gpu.compute_capability
    if "gpu" in target:
        wanted = (target["gpu"], target.get("compute_capability"))
        if wanted != (gpu.name, have):
            return [f"it was built on {wanted[0]} ({wanted[1]}), here is {gpu.name} ({have})"]
        return []
    listed = target.get("compute_capabilities", "")
    if listed in ("portable", "8.0 and later"):
        return [] if int(have.split(".")[0]) >= 8 else [f"it is for 8.0 and later, here is {have}"]
    if have not in listed.split(", "):
        return [f"it was built for compute capability {listed}, here is {have}"]
    return []


class Messages:
    """Collects what the library says of errors, through a logger of its own kind."""

    def __init__(self, trt: Any, component: str) -> None:
        self.errors: list[str] = []
        severity = trt.ILogger.Severity
        errors = self.errors

        class Recorder(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, level: Any, message: str) -> None:
                text = one_line(message)
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    errors.append(text)
                elif level == severity.WARNING:
                    _log.info("%s: %s", component, text)

        self.logger = Recorder()

    def taken(self) -> str:
        """What was said since the last call, in one line."""
        text = "; ".join(dict.fromkeys(self.errors)) or "it gave no reason"
        self.errors.clear()
        return text


def load_engine(
    trt: Any,
    lib: Library,
    plan: Path,
    onnx: Path,
    sidecar: Sidecar,
    digest: str | None,
    messages: Messages,
) -> tuple[Any, Any]:
    """The runtime and the engine of a plan, with the weights of `onnx`.

    They are put in where the plan holds none, or those of another file.
    Raises: EngineError: the library refuses it; the message is its own.
    """
    runtime = trt.Runtime(messages.logger)
    if runtime is None:
        raise EngineError(f"{sidecar.component}: {lib.name} does not start: {messages.taken()}")
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(f"{sidecar.component}: {lib.name} cannot load {plan}: {messages.taken()}")
    others = digest not in (None, sidecar.onnx_sha256)
    if others or sidecar.options.get("weight_stripped"):
        refit(trt, engine, onnx, sidecar.component, messages)
    if sidecar.options.get("weight_streaming"):
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return runtime, engine


def refit(trt: Any, engine: Any, onnx: Path, component: str, messages: Messages) -> None:
    """Put the weights of an ONNX file of the same graph into an engine.

    Raises: EngineError: the engine was not built for it, or the graphs differ.
    """
    if not engine.refittable:
        raise EngineError(f"{component}: the engine is not refittable; build it with --refittable")
    _log.info("%s: the weights come from %s", component, onnx)
    refitter = trt.Refitter(engine, messages.logger)
    parser = trt.OnnxParserRefitter(refitter, messages.logger)
    if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
        raise EngineError(f"{component}: {onnx} does not refit the engine: {messages.taken()}")


def check_names(trt: Any, engine: Any, sidecar: Sidecar, names: Sequence[str]) -> None:
    """Raises: EngineError: the engine has other inputs and outputs than its sidecar."""
    have = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    if sorted(have) != sorted(names):
        raise EngineError(
            f"{sidecar.component}: the engine has {', '.join(have)}, its sidecar {', '.join(names)}"
        )
    for spec in (*sidecar.inputs, *sidecar.outputs):
        dtype = trt.nptype(engine.get_tensor_dtype(spec.name))
        if getattr(dtype, "__name__", str(dtype)) != spec.dtype:
            raise EngineError(
                f"{sidecar.component}: '{spec.name}' is {dtype} in the engine and {spec.dtype} in "
                "its sidecar"
            )


class RuntimeCache:
    """TensorRT-RTX's compiled kernels in a file, so that the next process need not compile them.

    A file that does not fit (another driver, another GPU) is ignored and replaced at the end.
    """

    def __init__(self, config: Any, path: Path) -> None:
        self._path = path
        self._cache = config.create_runtime_cache()
        if path.is_file() and not self._cache.deserialize(path.read_bytes()):
            _log.info("%s does not fit this machine any more; it will be replaced", path)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file, if the folder allows it."""
        try:
            write_atomically(self._path, bytes(self._cache.serialize()))
        except OSError as error:
            _log.info("%s cannot be written: %s", self._path, error)
