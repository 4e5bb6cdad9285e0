"""ONNX Runtime with fixed sizes, every tensor at a fixed address, and the calls as one CUDA graph.

An experiment for `benchmarks.gpu`, not yet a backend: it has not run on a GPU. On a CPU (a dry run)
the same code runs without the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_rewrites import REWRITES, rewrite_attention
from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.ort.runtime_library import ort
from sdexport.engines.session import BoundSession, Feeds, Session, SessionBase, named_sizes

VARIANTS: Mapping[str, tuple[Mapping[str, str], str]] = {
    "as exported": ({}, ""),
    "Attention of 3 dimensions": ({}, "Attention"),
    "MultiHeadAttention": ({}, "MultiHeadAttention"),
    "MultiHeadAttention, channels last": ({"prefer_nhwc": "1"}, "MultiHeadAttention"),
}
"""Options of the CUDA provider, and the operator that attention becomes; the fastest is used."""


class GraphSession(SessionBase):
    """A graph for inputs of fixed sizes.

    Args:
      path: the .onnx file. sizes: of its named dimensions. folder: for a rewritten graph.
      device: "cuda" or "cpu".
      variant: of VARIANTS.
      stream: a CUDA stream of PyTorch, so that events can be recorded in it.
    """

    def __init__(
        self,
        path: Path,
        sizes: Mapping[str, int],
        *,
        folder: Path,
        device: str,
        variant: str = "as exported",
        stream: Any = None,
    ) -> None:
        provider_options, operator = VARIANTS[variant]
        self.attention = 0
        if operator:
            place = folder / operator / path.parent.name
            path, self.attention = rewrite_attention(path, operator, place)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        for name, size in sizes.items():
            options.add_free_dimension_override_by_name(name, size)
        providers: list[Any] = ["CPUExecutionProvider"]
        if device == "cuda":
            cuda = {"device_id": "0", "enable_cuda_graph": "1", **provider_options}
            if stream is not None:
                cuda["user_compute_stream"] = str(stream.cuda_stream)
            providers.insert(0, ("CUDAExecutionProvider", cuda))
        self._session = ort.InferenceSession(str(path), options, providers=providers)
        if device == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise EngineError(f"{path.parent.name}: ONNX Runtime did not start CUDA")
        inputs, outputs = graph_specs(path)  # the session's have sizes in place of names
        super().__init__(path.parent.name, inputs, outputs)
        self._device, self._sizes = device, dict(sizes)
        self._values: dict[str, Any] = {}
        self._binding: Any = None
        self.constants_of: object = None
        """Whose constants are on the device now."""

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _GraphBound(self, constants, shared)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self.constants_of = None
        return self.call(feeds)

    def call(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Upload these inputs, run, and download the outputs."""
        self.upload(feeds)
        self._session.run_with_iobinding(self._binding)
        return {spec.name: np.array(self._values[spec.name].numpy()) for spec in self.outputs}

    def upload(self, feeds: Feeds) -> None:
        if self._binding is None:
            self._allocate(feeds)
        for name, value in feeds.items():
            self._values[name].update_inplace(np.ascontiguousarray(value))

    def _allocate(self, feeds: Feeds) -> None:
        self._binding = self._session.io_binding()
        for name, value in feeds.items():
            data = np.array(value)  # a copy, as on a CPU the memory is shared
            self._values[name] = ort.OrtValue.ortvalue_from_numpy(data, self._device, 0)
            self._binding.bind_ortvalue_input(name, self._values[name])
        shapes = {name: value.shape for name, value in feeds.items()}
        sizes = {**self._sizes, **named_sizes(self.inputs, shapes)}
        for spec in self.outputs:
            shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
            value = ort.OrtValue.ortvalue_from_shape_and_type(
                shape, np.dtype(spec.dtype), self._device, 0
            )
            self._values[spec.name] = value
            self._binding.bind_ortvalue_output(spec.name, value)

    def _release(self) -> None:
        self._binding, self._values, self._session = None, {}, None


class _GraphBound(BoundSession):
    """Bound inputs stay on the device between calls."""

    def __init__(self, parent: GraphSession, constants: Feeds, shared: Sequence[str]) -> None:
        super().__init__(parent, constants, shared)
        self._graph = parent

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        everything = self._checked_feeds(feeds)
        if self._graph.constants_of is not self:
            outputs = self._graph.call(everything)
            self._graph.constants_of = self
            return outputs
        rest = {name: everything[name] for name in feeds}
        return self._graph.call(rest)


def variants(device: str) -> list[str]:
    """The names of VARIANTS that can differ on a device."""
    return [name for name, (options, _) in VARIANTS.items() if device == "cuda" or not options]


assert {operator for _, operator in VARIANTS.values() if operator} <= set(REWRITES)
