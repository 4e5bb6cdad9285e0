"""ONNX Runtime with the WebGPU execution provider as a Session."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.errors import NEEDS_LESS, EngineError, OutOfMemoryError
from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles
from sdexport.engines.messages import plain
from sdexport.engines.onnx_file.attention_nodes import spelled_out
from sdexport.engines.onnx_file.float32_graph import in_float32, lower_precisions
from sdexport.engines.onnx_file.wire_format import DataType
from sdexport.engines.ort.external_data import give_external_data
from sdexport.engines.ort.onnxruntime_session import OnDevice, OnnxRuntimeBase
from sdexport.engines.ort.runtime_library import loading, session_options, tensor_specs
from sdexport.engines.session import Feeds, GraphSource, Session, SessionBase
from sdexport.engines.webgpu.webgpu_library import (
    DEVICES,
    LOCK,
    PROVIDER,
    StartedGpu,
    check_device,
    open_graph,
    start,
)

_log = logging.getLogger(__name__)

_SHAPE_OPERATORS = frozenset(
    (
        *("Add", "And", "Cast", "Concat", "Constant", "ConstantOfShape", "Cos", "Div", "Equal"),
        *("Expand", "Gather", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less"),
        *("LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "Reshape"),
        *("ScatterND", "Shape", "Sin", "Size", "Slice", "Split", "Squeeze", "Sub", "Unsqueeze"),
        *("Where", "MemcpyFromHost", "MemcpyToHost"),
    )
)
"""Operators that compute sizes and embed the time step: ONNX Runtime keeps those on small tensors
on the CPU, which costs nothing."""
_BAD_BUFFER = ("[Invalid Buffer", "maxStorageBufferBindingSize")
"""In messages about a buffer that could not be allocated, or is larger than the GPU allows."""
_ADVICE = {
    "Attention": "sdexport export --opset 18 writes attention as operators that it has",
}
"""How an export avoids an operator."""


class _OneAtATime(SessionBase):
    """Calls that hold the lock of the library, and name memory where it is the reason."""

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        with LOCK, _out_of_memory(self.name):
            return super()._compute(feeds)

    def _release(self) -> None:
        with LOCK:
            super()._release()

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be shutting down
            self.close()


class WebGpuSession(_OneAtATime, OnnxRuntimeBase):
    """An ONNX graph in ONNX Runtime, on a GPU through Vulkan, Direct3D 12 or Metal.

    Nodes for which WebGPU has no kernel run on the CPU; a warning names those that are not about
    sizes. Weights in bfloat16, and in float16 where the GPU has no float16 arithmetic, are
    converted to float32. One call runs at a time in a process.

    Args:
      path: the .onnx file; its external data is in the same folder.
      device: which GPU where there are several, one of webgpu_library.DEVICES; the same for all
        sessions of a process.
      threads: of the nodes on the CPU; None leaves it to ONNX Runtime.
      files: those that are opened; their identity is compared before and after that.
    Raises: InvalidArgumentError: an option out of range, or a second device. EngineError: there is
      no GPU, it does not start, or the file cannot be loaded. MissingDependencyError: the plugin
      is not installed. PackageError: the files changed.
    """

    device = "webgpu"

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = DEVICES[0],
        threads: int | None = None,
        files: CheckedFiles = UNCHECKED,
    ) -> None:
        path = Path(path)
        name = path.parent.name or path.stem
        options = session_options(threads, "all", prepacking=True)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        gpu = start(check_device(device))
        with files.unchanged(), _out_of_memory(name):
            session = _load(name, path, options, gpu)
        _report_cpu_nodes(name, session)
        super().__init__(
            session, name, tensor_specs(session.get_inputs()), tensor_specs(session.get_outputs())
        )
        self._source = GraphSource(path)

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _OnGpu(self, constants, shared)


class _OnGpu(_OneAtATime, OnDevice):
    """Bound inputs in the GPU's memory; each call uploads only the others."""

    def __init__(self, parent: WebGpuSession, constants: Feeds, shared: Sequence[str]) -> None:
        with LOCK, _out_of_memory(parent.name):
            super().__init__(parent, constants, shared)


@contextmanager
def _out_of_memory(name: str) -> Iterator[None]:
    """Name memory as the reason of an error that only says that a buffer is invalid.

    WebGPU reports a failed allocation when the buffer is first used, without its reason.
    """
    try:
        yield
    except EngineError as error:
        if not any(text in str(error) for text in _BAD_BUFFER):
            raise
        raise OutOfMemoryError(
            f"{name}: the GPU's memory does not suffice, or a buffer is too large for it; "
            f"{NEEDS_LESS}"
        ) from error


def _load(name: str, path: Path, options: Any, gpu: StartedGpu) -> Any:
    """ONNX Runtime's own session of a file, in float32 where the GPU has no lower precision.

    Raises: EngineError: it cannot be loaded.
    """
    with ExitStack() as mapped:
        model: Path | bytes = path
        lower = lower_precisions(path)
        if DataType.BFLOAT16 in lower or (lower and not gpu.float16):
            _log.info("%s: this GPU computes it in float32", name)
            model = in_float32(path, at_once=True)
        model = spelled_out(model, name) or model
        if isinstance(model, bytes):
            give_external_data(name, path, options, mapped)
        with loading(name, path.name):
            return open_graph(model if isinstance(model, bytes) else str(path), options, gpu.device)


def _report_cpu_nodes(name: str, session: Any) -> None:
    """Warn of nodes that run on the CPU for want of a kernel."""
    nodes = [
        node
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != PROVIDER
        for node in part.get_nodes()
        if node.op_type not in _SHAPE_OPERATORS
    ]
    if not nodes:
        return
    kinds = Counter(node.op_type for node in nodes)
    counted = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
    advice = [text for kind, text in _ADVICE.items() if kind in kinds]
    _log.warning(
        "%s: these run on the CPU, as WebGPU has no kernels for them: %s, the first is node '%s'%s",
        name,
        counted,
        plain(nodes[0].name),
        "".join(f"; {text}" for text in advice),
    )
