"""ONNX Runtime itself: its options, loading a file, running it, and its errors in our words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.cuda_device import absent
from sdexport.engines.errors import (
    EngineError,
    InvalidArgumentError,
    MissingDependencyError,
    engine_error,
)
from sdexport.engines.exit_actions import CANCEL
from sdexport.engines.messages import import_failure, one_line
from sdexport.engines.ort.cuda_libraries import INSTALL
from sdexport.engines.ort.prepared.prepared_graph import data_path
from sdexport.engines.session import ANY_SIZE, Feeds, TensorSpec, check_count
from sdexport.engines.telemetry import import_onnxruntime

try:
    ort = import_onnxruntime()
except ImportError as error:
    raise MissingDependencyError(
        "ONNX Runtime is not installed; run: pip install 'sdexport[cpu]' (or 'sdexport[gpu]')"
        f"{import_failure(error)}"
    ) from error

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
OPTIMIZATIONS = ("none", "basic", "extended", "all")
_LEVELS = dict(
    zip(
        OPTIMIZATIONS,
        ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"),
        strict=True,
    )
)
CUDA = "CUDAExecutionProvider"
CPU = ("CPUExecutionProvider",)
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""Option of a session: where the external data of a model is that is given as bytes."""
SMALLEST_MAPPED = 1024
"""Least size in bytes of a weight that is stored in the separate, mapped file."""
Provider = str | tuple[str, Mapping[str, Any]]


def session_options(threads: int | None, optimization: str, prepacking: bool) -> Any:
    """ONNX Runtime's options for a session; see OnnxRuntimeSession for the arguments.

    Raises: InvalidArgumentError: an option out of range.
    """
    if optimization not in OPTIMIZATIONS:
        raise InvalidArgumentError(
            f"optimization must be one of {', '.join(OPTIMIZATIONS)}, got {optimization!r:.40}"
        )
    if threads is not None:
        check_count("threads", threads)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # none: its errors are raised, warnings are about optimisation
    # With memory patterns, the second run of a shape adds an arena for it: 1.7 times the peak
    # memory in the VAE decoder, at the same speed.
    options.enable_mem_pattern = False
    # The graph's own order. The default one converts fp16 weights to float32 long before they are
    # used: 7.5 GB for SDXL's UNet instead of 0.5.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimization])
    if threads is not None:
        options.intra_op_num_threads = threads
    if not prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def store_optimized(options: Any, path: Path) -> None:
    """Let ONNX Runtime write the graph that it opens as it runs it, with its weights.

    Args:
      options: of the session. path: the .onnx to write; weights go to the file of `data_path`.
    """
    options.optimized_model_filepath = str(path)
    for key, value in {
        "session.optimized_model_external_initializers_file_name": data_path(path).name,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(SMALLEST_MAPPED),
        "session.save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(key, value)


def load(
    name: str,
    path: Path,
    options: Any,
    providers: Sequence[Provider],
    *,
    model: bytes | None = None,
) -> Any:
    """ONNX Runtime's own session of a file.

    Args:
      name: of the component, for messages.
      model: what to open instead of the file's content; `options` then say where its data is.
    Raises: EngineError: it cannot be loaded.
    """
    with loading(name, path.name):
        # without `enable_fallback`, a provider that fails raises its error; with it, ONNX Runtime
        # prints to stdout and goes on with the CPU
        return ort.InferenceSession(
            str(path) if model is None else model,
            options,
            providers=list(providers),
            enable_fallback=0,
        )


def loading(name: str, what: str) -> AbstractContextManager[None]:
    """Turn ONNX Runtime's errors in a block that loads a graph into EngineError.

    Args:
      name: of the component. what: is loaded, for the message.
    """
    return failing(f"{name}: ONNX Runtime cannot load {what}")


@contextmanager
def failing(failure: str) -> Iterator[None]:
    """Turn ONNX Runtime's errors in a block into EngineError; `failure` begins the message."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # its exception classes have no other base
        raise engine_error(f"{failure}: {one_line(error)}") from error


def compute(name: str, session: Any, outputs: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray]:
    """Run ONNX Runtime's own session; arrays by the name of the output.

    Raises: EngineError: it failed.
    """
    with failing(f"{name}: ONNX Runtime failed"), cancellable() as options:
        values = session.run(outputs, dict(feeds), options)
    return dict(zip(outputs, values, strict=True))


@contextmanager
def cancellable() -> Iterator[Any]:
    """Options of a run that fails after its current node when a command is interrupted."""
    options = ort.RunOptions()

    def cancel() -> None:
        options.terminate = True

    with CANCEL.during(cancel):
        yield options


def check_available(name: str, wanted: Sequence[str]) -> None:
    """Raises: EngineError: a provider is not in this installation."""
    available = ort.get_available_providers()
    for provider in wanted:
        if provider not in available:
            hint = f"; {INSTALL}" if provider == CUDA else ""
            if provider.casefold() == "nvtensorrtrtxexecutionprovider":
                hint = (
                    ". It is a plugin of ONNX Runtime, which sdexport does not load: use "
                    "--backend tensorrt-rtx"
                )
            raise EngineError(
                f"{name}: ONNX Runtime has no {provider} here; it has {', '.join(available)}{hint}"
            )


def check_started(name: str, wanted: Sequence[str], started: Sequence[str]) -> None:
    """Check that every provider started: ONNX Runtime goes on without one that did not.

    Args:
      name: of the component. wanted, started: names of providers.
    Raises: EngineError: one did not.
    """
    for provider in wanted:
        if provider not in started:
            reason = absent() if provider == CUDA else ""
            reason = reason or "no such device, or a driver that is too old"
            raise EngineError(
                f"{name}: ONNX Runtime could not start {provider}: {reason}. The graph would run "
                f"on {', '.join(started)}"
            )


def tensor_specs(values: Sequence[Any]) -> list[TensorSpec]:
    """Specs of ONNX Runtime's own descriptions of inputs or outputs."""
    return [
        TensorSpec(
            v.name,
            _DTYPES.get(v.type, v.type),
            tuple(d if isinstance(d, (int, str)) else ANY_SIZE for d in v.shape),
        )
        for v in values
    ]
