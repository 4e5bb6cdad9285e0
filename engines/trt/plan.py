"""Load a plan from disk into an engine: check it, refit it; and TensorRT-RTX's runtime cache."""

from __future__ import annotations

import hashlib
import logging
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdexport.engines import cuda_device
from sdexport.engines.cache.engine_files import checked_files
from sdexport.engines.cache.profiles import check_profiles
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.cache.staleness import Requirements, Target, other_package, stale_reasons
from sdexport.engines.errors import EngineError, InvalidArgumentError
from sdexport.engines.files import write_atomically
from sdexport.engines.guarded_files import open_guarded, read_guarded
from sdexport.engines.messages import one_line
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.trt.build_options import AMPERE_AND_LATER, PORTABLE
from sdexport.engines.trt.library import Library, library

_log = logging.getLogger(__name__)
RUNTIME_CACHE_LIMIT = 2**30
"""Bytes of a file of compiled kernels."""


def build_command(backend: str, component: str) -> str:
    """The command that builds a component's plan, for messages."""
    return f"sdexport build PACKAGE --backend {backend} --component {component}"


def read_sidecar(plan: Path, backend: str, component: str) -> Sidecar:
    """Read the sidecar of a plan.

    Raises: FileNotFoundError: there is none. EngineError: it is damaged. Both messages name the
      command that builds the plan.
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


def requirements(
    onnx: Path,
    backend: str,
    *,
    digest: str | None,
    package: str | None,
    version: str | None,
    gpu: cuda_device.Gpu | None,
) -> Requirements:
    """What a plan must have been built from, with and for to run an ONNX file here.

    Args:
      digest, package: see Requirements.onnx_sha256 and package_sha256. version: of the library.
        None: not compared.
    """
    return Requirements(
        backend=backend,
        library=library(backend).name,
        onnx_sha256=digest,
        package_sha256=package,
        graph_sha256=lambda: graph_digest(onnx),
        library_version=version,
        problems=None if gpu is None else lambda plan: _target_problems(plan.target, gpu),
    )


def check_fits(
    sidecar: Sidecar,
    onnx: Path,
    backend: str,
    gpu: cuda_device.Gpu,
    *,
    digest: str | None,
    package: str | None,
) -> None:
    """Raises: EngineError: the plan was built from, with or for something else; says what."""
    version = library(backend).version()
    required = requirements(onnx, backend, digest=digest, package=package, version=version, gpu=gpu)
    if other := other_package(sidecar, package):
        _log.info("%s: %s", sidecar.component, other)
    reasons = stale_reasons(sidecar, required)
    if reasons:
        command = build_command(backend, sidecar.component)
        raise EngineError(
            f"{sidecar.component}: this engine does not fit: {'; '.join(reasons)}; "
            f"build it again: {command} --rebuild-stale"
        )


def _target_problems(target: Target, gpu: cuda_device.Gpu) -> list[str]:
    """Why a plan for some GPUs does not run on this one."""
    present = gpu.compute_capability
    if "gpu" in target:
        built_on = (target["gpu"], target.get("compute_capability"))
        if built_on != (gpu.name, present):
            return [
                f"it was built on {built_on[0]} ({built_on[1]}), here is {gpu.name} ({present})"
            ]
        return []
    listed = target.get("compute_capabilities", "")
    if listed in (PORTABLE, AMPERE_AND_LATER):
        if int(present.split(".")[0]) < 8:
            return [f"it is for {AMPERE_AND_LATER}, here is {present}"]
        return []
    if present not in listed.split(", "):
        return [f"it was built for compute capability {listed}, here is {present}"]
    return []


class Messages:
    """The library's error messages, collected through a logger of its own class."""

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

    def take(self) -> str:
        """The messages since the last call, in one line."""
        text = "; ".join(dict.fromkeys(self.errors)) or "it gave no reason"
        self.errors.clear()
        return text

    @contextmanager
    def explained(self, failure: str, *errors: type[Exception]) -> Iterator[None]:
        """Raise an EngineError, with the library's messages, for exceptions of its bindings.

        Args:
          failure: begins the message.
          errors: RuntimeError for failed calls, TypeError for failed constructors.
        """
        try:
            yield
        except errors as error:
            reason = self.take() if self.errors else one_line(error)
            raise EngineError(f"{failure}: {reason}") from error


def load_engine(
    trt: Any,
    lib: Library,
    plan: Path,
    onnx: Path,
    sidecar: Sidecar,
    digest: str | None,
    messages: Messages,
) -> tuple[Any, Any]:
    """Load the engine of a plan, with the weights of `onnx`.

    The weights are put in if the plan has none, or those of another file.
    Returns: the library's runtime, which must be kept as long as the engine, and the engine.
    Raises: EngineError: the plan was altered, or the library cannot load it; the message has the
      library's reason. PackageError: the plan was replaced meanwhile.
    """
    try:
        files = checked_files(plan, sidecar)
    except EngineError as error:
        command = build_command(sidecar.backend, sidecar.component)
        raise EngineError(
            f"{sidecar.component}: {error}; build it again: {command} --rebuild-stale"
        ) from error
    with messages.explained(f"{sidecar.component}: {lib.name} does not start", TypeError):
        runtime = trt.Runtime(messages.logger)
    cannot_load = f"{sidecar.component}: {lib.name} cannot load {plan}"
    with (
        files.unchanged(),
        open_guarded(plan, error=EngineError, folder=plan.parent) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        messages.explained(cannot_load, RuntimeError),
    ):
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(f"{cannot_load}: {messages.take()}")
    other_weights = digest not in (None, sidecar.onnx_sha256)
    if other_weights or sidecar.options.get("weight_stripped"):
        refit(trt, engine, onnx, sidecar.component, messages)
    if sidecar.options.get("weight_streaming"):
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return runtime, engine


def refit(trt: Any, engine: Any, onnx: Path, component: str, messages: Messages) -> None:
    """Replace the weights of an engine by those of another ONNX file of the same graph.

    Raises: EngineError: the engine was not built for it, or the graphs differ.
    """
    if not engine.refittable:
        raise EngineError(f"{component}: the engine is not refittable; build it with --refittable")
    _log.info("%s: the weights come from %s", component, onnx)
    failure = f"{component}: {onnx} does not refit the engine"
    with messages.explained(failure, TypeError, RuntimeError):
        refitter = trt.Refitter(engine, messages.logger)
        parser = trt.OnnxParserRefitter(refitter, messages.logger)
        done = parser.refit_from_file(str(onnx)) and refitter.refit_cuda_engine()
    if not done:
        raise EngineError(f"{failure}: {messages.take()}")


def check_names(trt: Any, engine: Any, sidecar: Sidecar, names: Sequence[str]) -> None:
    """Raises: EngineError: engine, inputs, outputs and profiles do not belong together."""
    present = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    if sorted(present) != sorted(names):
        raise EngineError(
            f"{sidecar.component}: the engine has {', '.join(present)}, "
            f"its sidecar {', '.join(names)}"
        )
    try:
        check_profiles(sidecar.component, sidecar.inputs, sidecar.profiles)
    except InvalidArgumentError as error:
        raise EngineError(f"{error}; its sidecar is damaged") from error
    for spec in (*sidecar.inputs, *sidecar.outputs):
        dtype = trt.nptype(engine.get_tensor_dtype(spec.name))
        if getattr(dtype, "__name__", str(dtype)) != spec.dtype:
            raise EngineError(
                f"{sidecar.component}: '{spec.name}' is {dtype} in the engine and {spec.dtype} in "
                "its sidecar"
            )


class RuntimeCache:
    """TensorRT-RTX's compiled kernels in a file, which saves the next process from compiling them.

    The file begins with a line that holds a digest of the kernels and of the plan that they belong
    to. One that is damaged, of another plan or not of this machine is ignored, and replaced by
    `save`.

    Args:
      path: the file. plan_sha256: of the plan.
    """

    def __init__(self, config: Any, path: Path, plan_sha256: str) -> None:
        self._path, self._plan_sha256, self._writable = path, plan_sha256, True
        self._cache = config.create_runtime_cache()
        kernels = self._read()
        if kernels is not None and not self._cache.deserialize(kernels):
            _log.info("%s does not fit this machine; it will be replaced", path)
        config.set_runtime_cache(self._cache)

    def _read(self) -> bytes | None:
        """The kernels in the file; None if there is no file that can be used."""
        try:
            content = read_guarded(
                self._path, error=EngineError, folder=self._path.parent, limit=RUNTIME_CACHE_LIMIT
            )
        except FileNotFoundError:
            return None
        except (EngineError, OSError) as error:
            _log.warning("the cache of compiled kernels is not used: %s", one_line(error))
            self._writable = False
            return None
        line, _, kernels = content.partition(b"\n")
        if line != self._first_line(kernels):
            _log.info("%s is damaged or of another plan; it will be replaced", self._path)
            return None
        return kernels

    def _first_line(self, kernels: bytes) -> bytes:
        digest = hashlib.sha256(self._plan_sha256.encode() + kernels).hexdigest()
        return b"sdexport-runtime-cache 1 " + digest.encode()

    def save(self) -> None:
        """Write the file, if the folder can be written and the file is no link, pipe or folder."""
        if not self._writable:
            return
        kernels = bytes(self._cache.serialize())
        try:
            write_atomically(self._path, self._first_line(kernels) + b"\n" + kernels)
        except OSError as error:
            _log.info("%s cannot be written: %s", self._path, error)
