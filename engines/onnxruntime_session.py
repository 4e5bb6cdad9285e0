"""ONNX Runtime as a Session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.session import ANY_SIZE, EngineError, Feeds, SessionBase, TensorSpec

try:
    import onnxruntime as ort
except ImportError as error:
    raise ImportError(
        "ONNX Runtime is not installed; run: pip install 'sdexport[cpu]' (or 'sdexport[gpu]')"
    ) from error

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class OnnxRuntimeSession(SessionBase):
    """An ONNX graph in ONNX Runtime.

    Args:
      path: the .onnx file; external data is looked up beside it.
      providers: execution providers in order of preference, each a name or (name, options).
      threads: threads inside one operator; None leaves it to ONNX Runtime (every core).
    Raises: EngineError: the file cannot be loaded, or a provider is not in this installation.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] = ("CPUExecutionProvider",),
        threads: int | None = None,
    ) -> None:
        path = Path(path)
        name = path.parent.name or path.stem
        available = ort.get_available_providers()
        for provider in providers:
            wanted = provider if isinstance(provider, str) else provider[0]
            if wanted not in available:
                raise EngineError(
                    f"{name}: ONNX Runtime has no {wanted} here; it has {', '.join(available)}"
                )
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings are about graph optimisation
        # From the second run of a shape on it would keep a second arena for that shape: 1.7 times
        # the peak memory in the VAE's decoder, at the same speed.
        options.enable_mem_pattern = False
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # its exception classes share no base but Exception
            raise EngineError(
                f"{name}: ONNX Runtime cannot load {path.name}: {_one_line(error)}"
            ) from error
        super().__init__(
            name, _specs(self._session.get_inputs()), _specs(self._session.get_outputs())
        )
        self._output_names = [spec.name for spec in self.outputs]

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        session = self._session
        if session is None:
            self._check_open()
        try:
            values = session.run(self._output_names, dict(feeds))
        except Exception as error:
            raise EngineError(f"{self.name}: ONNX Runtime failed: {_one_line(error)}") from error
        return dict(zip(self._output_names, values, strict=True))

    def _release(self) -> None:
        self._session = None


def _specs(values: Sequence[Any]) -> list[TensorSpec]:
    return [
        TensorSpec(
            v.name,
            _DTYPES.get(v.type, v.type),
            tuple(d if isinstance(d, (int, str)) else ANY_SIZE for d in v.shape),
        )
        for v in values
    ]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
