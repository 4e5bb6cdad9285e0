"""A graph that Triton runs, as a Session: each call is a request to another model of the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdexport.engines.errors import EngineError, engine_error
from sdexport.engines.messages import one_line
from sdexport.engines.session import Feeds, SessionBase, TensorSpec
from sdexport.triton.graph_models import has_no_dims


class BlsSession(SessionBase):
    """A model of the same Triton server; calls are possible within `execute` alone.

    Args:
      name: of the component, for messages.
      model: name of Triton's model.
      max_batch: rows that the model takes in one request; 0 if it has no limit.
      triton: the module triton_python_backend_utils.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        model: str,
        max_batch: int,
        triton: Any,
    ) -> None:
        super().__init__(name, inputs, outputs)
        self._model, self._max_batch, self._triton = model, max_batch, triton
        self._no_dims = {spec.name for spec in (*inputs, *outputs) if has_no_dims(spec, max_batch)}

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        rows = len(next(iter(feeds.values()))) if self._max_batch else 0
        if rows <= self._max_batch:
            return self._request(feeds)
        parts = [
            self._request({name: v[at : at + self._max_batch] for name, v in feeds.items()})
            for at in range(0, rows, self._max_batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _request(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Send a request to the model and wait for its response.

        Raises: EngineError: the model failed, is not loaded, or returned something else.
        """
        triton = self._triton
        request = triton.InferenceRequest(
            model_name=self._model,
            requested_output_names=[spec.name for spec in self.outputs],
            inputs=[triton.Tensor(k, self._sent(k, v)) for k, v in feeds.items()],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            reason = one_line(str(response.error().message()), 500)
            raise engine_error(f"{self.name}: Triton's model {self._model} failed: {reason}")
        return {spec.name: self._output(response, spec) for spec in self.outputs}

    def _sent(self, name: str, values: np.ndarray) -> np.ndarray:
        """An input as Triton takes it."""
        found = np.ascontiguousarray(values)  # which gives a scalar a dimension
        return found.reshape(*np.shape(values), 1) if name in self._no_dims else found

    def _output(self, response: Any, spec: TensorSpec) -> np.ndarray:
        tensor = self._triton.get_output_tensor_by_name(response, spec.name)
        if tensor is None:
            raise EngineError(f"{self.name}: Triton's model {self._model} gave no {spec.name}")
        # a copy: the tensor is in memory that Triton takes back
        values: np.ndarray = np.array(tensor.as_numpy())
        if spec.name in self._no_dims and values.shape[-1:] == (1,):
            values = values[..., 0]
        if values.dtype != spec.dtype or values.ndim != len(spec.shape):
            raise EngineError(
                f"{self.name}: Triton's model {self._model} gave {values.dtype} {values.shape} as "
                f"{spec.name}, expected {spec}"
            )
        return values
