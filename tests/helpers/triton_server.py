"""A stand-in for a Triton server: its Python backend's module, and models that it runs.

It checks what Triton checks: names, types and shapes against config.pbtxt, the batch dimension, and
the configuration against the ONNX file, as Triton's ONNX Runtime backend does when it loads one.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

Arrays = Mapping[str, np.ndarray]
DTYPES = {
    "TYPE_BOOL": "bool",
    "TYPE_UINT8": "uint8",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
    "TYPE_STRING": "object",
}
ONNX_TYPES = {"float32": "float", "float16": "float16", "float64": "double"}


class RequestError(Exception):
    """Triton rejects a request, or a model answered it with an error."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class LoadError(Exception):
    """Triton cannot load a model."""


class Tensor:
    """pb_utils.Tensor."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        assert isinstance(name, str) and type(values) is np.ndarray, (name, type(values))
        assert values.flags.c_contiguous
        if values.dtype == object:
            assert all(isinstance(each, bytes) for each in values.ravel())
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class TritonError:
    """pb_utils.TritonError."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED = range(6)
    ALREADY_EXISTS, CANCELLED = 6, 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        assert isinstance(message, str) and "\n" not in message
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class TritonModelException(Exception):  # noqa: N818  Triton's name
    """pb_utils.TritonModelException."""


class InferenceResponse:
    """pb_utils.InferenceResponse."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._tensors, self._error = list(output_tensors), error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors


class PreferredMemory:
    """pb_utils.PreferredMemory."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self.memory_type = preferred_memory_type


class ModelRequest:
    """A request as a Python model gets it."""

    def __init__(
        self, inputs: Arrays, requested: Sequence[str], is_cancelled: Callable[[], bool]
    ) -> None:
        self.tensors = {name: Tensor(name, value) for name, value in inputs.items()}
        self._requested, self.is_cancelled = list(requested), is_cancelled

    def requested_output_names(self) -> list[str]:
        return self._requested


class TritonServer:
    """The models of a repository.

    Attributes:
      calls: each request that a Python model sent to another model: its name, and its arrays.
      unloaded: models that are not loaded.
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.calls: list[tuple[str, dict[str, np.ndarray]]] = []
        self.unloaded: set[str] = set()
        self.configs = {
            folder.name: read_config(folder / "config.pbtxt")
            for folder in repository.iterdir()
            if folder.is_dir()
        }
        for name, config in self.configs.items():
            assert config.name == name
        self._graphs: dict[str, _Graph] = {}
        self._python: dict[str, Any] = {}

    def infer(self, model: str, inputs: Arrays, requested: Sequence[str] = ()) -> Arrays:
        """Send a request.

        Raises: RequestError: Triton rejects it, or the model failed.
        """
        (found,) = self.infer_batch(model, [inputs], requested)
        if isinstance(found, RequestError):
            raise found
        return found

    def infer_batch(
        self,
        model: str,
        requests: Sequence[Arrays],
        requested: Sequence[str] = (),
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Arrays | RequestError]:
        """Requests that Triton's dynamic batcher gives to a Python model together."""
        config = self._config(model)
        for inputs in requests:
            check_request(config, inputs)
        if config.backend == "onnxruntime":
            return [self._graph(model).run(inputs) for inputs in requests]
        rows = sum(len(next(iter(inputs.values()))) for inputs in requests)
        assert rows <= config.max_batch_size
        known = {each.name for each in config.output}
        assert known.issuperset(requested)
        wrapped = [
            ModelRequest(each, requested or sorted(known), is_cancelled) for each in requests
        ]
        responses = self.python(model).execute(wrapped)
        assert len(responses) == len(requests)
        return [
            _answer(config, response, len(next(iter(inputs.values()))))
            for response, inputs in zip(responses, requests, strict=True)
        ]

    def python(self, model: str) -> Any:
        """The Python model of a name, which is loaded when it is first needed."""
        if model not in self._python:
            path = self.repository / model / "1" / "model.py"
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(sys.modules, "triton_python_backend_utils", self.module())
                spec = importlib.util.spec_from_file_location("model", path)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                made = module.TritonPythonModel()
                made.initialize({"model_name": model, "model_version": "1", "model_config": "{}"})
            self._python[model] = made
        return self._python[model]

    def close(self) -> None:
        for model in self._python.values():
            model.finalize()

    def module(self) -> ModuleType:
        """The module triton_python_backend_utils."""
        server = self

        class InferenceRequest:
            def __init__(
                self,
                model_name: str,
                requested_output_names: Sequence[str],
                inputs: Sequence[Tensor],
                preferred_memory: PreferredMemory,
            ) -> None:
                assert preferred_memory.memory_type == 0
                self._model, self._requested = model_name, requested_output_names
                self._inputs = {tensor.name(): tensor.as_numpy() for tensor in inputs}

            def exec(self) -> InferenceResponse:
                server.calls.append((self._model, self._inputs))
                try:
                    found = server.infer(self._model, self._inputs)
                except RequestError as error:
                    return InferenceResponse(error=TritonError(str(error)))
                return InferenceResponse([Tensor(k, found[k]) for k in self._requested])

        made: Any = ModuleType("triton_python_backend_utils")
        made.Tensor, made.TritonError = Tensor, TritonError
        made.InferenceRequest, made.InferenceResponse = InferenceRequest, InferenceResponse
        made.TritonModelException = TritonModelException
        made.PreferredMemory, made.TRITONSERVER_MEMORY_CPU = PreferredMemory, 0
        made.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
        made.get_output_tensor_by_name = lambda response, name: next(
            (each for each in response.output_tensors() if each.name() == name), None
        )
        return made

    def _config(self, model: str) -> Any:
        if model not in self.configs or model in self.unloaded:
            raise RequestError(f"Request for unknown model: '{model}' is not found")
        return self.configs[model]

    def _graph(self, model: str) -> _Graph:
        if model not in self._graphs:
            path = self.repository / model / "1" / "model.onnx"
            self._graphs[model] = _Graph(self.configs[model], path)
        return self._graphs[model]


def read_config(path: Path) -> Any:
    """A config.pbtxt, read with Triton's own protobuf; skips where it is not installed."""
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(encoding="utf-8"), _messages().ModelConfig())


@cache
def _messages() -> Any:
    """Triton's messages of configurations, without the gRPC client that the package imports."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed: pip install --no-deps tritonclient")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data_type(field: Any) -> str:
    """The dtype of an input or output of a configuration."""
    kinds = type(field).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return DTYPES[kinds[field.data_type].name]


def check_request(config: Any, inputs: Arrays) -> None:
    """Raises: RequestError: Triton rejects these inputs."""
    known = {each.name: each for each in config.input}
    for name in inputs:
        if name not in known:
            raise RequestError(f"unexpected inference input '{name}' for model '{config.name}'")
    missing = [each.name for each in config.input if not each.optional and each.name not in inputs]
    if missing:
        raise RequestError(f"expected inputs {missing} for model '{config.name}'")
    rows = set()
    for name, values in inputs.items():
        field = known[name]
        shape = values.shape
        if values.dtype != data_type(field):
            raise RequestError(f"inference input '{name}' data-type is {values.dtype}")
        if config.max_batch_size:
            if not shape:
                raise RequestError(f"inference input '{name}' has no batch dimension")
            rows.add(shape[0])
            shape = shape[1:]
        if not _fits(shape, field.dims):
            raise RequestError(f"unexpected shape for input '{name}': {values.shape}")
    if config.max_batch_size and (
        len(rows) != 1 or not 1 <= next(iter(rows)) <= config.max_batch_size
    ):
        raise RequestError(f"inference request batch-size {rows} for '{config.name}'")


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(d in (-1, s) for s, d in zip(shape, dims, strict=True))


def _answer(config: Any, response: InferenceResponse, rows: int) -> Arrays | RequestError:
    error = response.error()
    if error is not None:
        return RequestError(error.message(), error.code())
    outputs = {each.name: each for each in config.output}
    found = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    for name, values in found.items():
        assert values.dtype == data_type(outputs[name]), name
        assert len(values) == rows and _fits(values.shape[1:], outputs[name].dims), name
    return found


class _Graph:
    """An ONNX file in ONNX Runtime, with the checks of Triton's backend."""

    def __init__(self, config: Any, path: Path) -> None:
        self._config, self._path = config, path

    @cached_property
    def _session(self) -> ort.InferenceSession:
        session = ort.InferenceSession(self._path, providers=["CPUExecutionProvider"])
        inputs = {each.name: each for each in session.get_inputs()}
        outputs = {each.name: each for each in session.get_outputs()}
        if inputs.keys() != {each.name for each in self._config.input if not each.optional}:
            raise LoadError("configuration expects other inputs than the model provides")
        for field in (*self._config.input, *self._config.output):
            found = (inputs if field in self._config.input else outputs)[field.name]
            dtype = data_type(field)
            if found.type != f"tensor({ONNX_TYPES.get(dtype, dtype)})":
                raise LoadError(f"{field.name}: {dtype}, the model has {found.type}")
            shape = [size if isinstance(size, int) else -1 for size in found.shape]
            if self._config.max_batch_size and (not shape or shape.pop(0) != -1):
                raise LoadError(f"{field.name}: for batching the first dimension must be -1")
            dims = list(field.reshape.shape) if field.HasField("reshape") else list(field.dims)
            if not _fits(dims, shape):
                raise LoadError(f"{field.name}: dims {dims}, the model has {shape}")
        return session

    def run(self, inputs: Arrays) -> Arrays:
        fields = {each.name: each for each in self._config.input}
        shaped = {
            name: values.reshape(values.shape[:-1]) if fields[name].HasField("reshape") else values
            for name, values in inputs.items()
        }
        names = [each.name for each in self._config.output]
        found = dict(zip(names, self._session.run(names, shaped), strict=True))
        for field in self._config.output:
            if field.HasField("reshape"):
                found[field.name] = np.asarray(found[field.name])[..., None]
        return found
