"""Everything on the GPU for one combination of input shapes, created once and reused."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from sdexport.engines import cuda_device
from sdexport.engines.errors import EngineError, engine_error
from sdexport.engines.session import TensorSpec
from sdexport.engines.trt.plan import Messages
from sdexport.engines.trt.scratch_memory import Activations

_log = logging.getLogger(__name__)
Specs = tuple[TensorSpec, ...]
UNTOKENED = 0


class Slot:
    """Buffers of one tensor: on the device, pinned on the host, and the latter as an array.

    token: of the constant that is on the device now, or UNTOKENED.
    """

    def __init__(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        self.size = math.prod(shape) * np.dtype(spec.dtype).itemsize
        self.token = UNTOKENED
        self.device = cuda_device.DeviceBuffer(self.size)
        try:
            self.host = cuda_device.PinnedBuffer(self.size)
        except BaseException:
            self.device.close()
            raise
        self.array: np.ndarray | None = self.host.view(shape, spec.dtype)

    def close(self) -> None:
        """Free both buffers; closing twice is allowed."""
        self.array = None
        self.device.close()
        self.host.close()


class Shape:
    """An execution context with buffers and, where it captures, a CUDA graph.

    Args:
      profile: index of the optimization profile, or None if there is only one.
      specs: inputs and outputs. shapes: of the inputs.
      captures: record the launch into a CUDA graph on the second call; the library does lazy
        initialization in the first.
    Raises: EngineError: the library rejects the shapes, or device memory is used up.
    """

    def __init__(
        self,
        context: Any,
        profile: int | None,
        specs: tuple[Specs, Specs],
        shapes: Mapping[str, tuple[int, ...]],
        stream: cuda_device.Stream,
        activations: Activations,
        *,
        captures: bool,
    ) -> None:
        inputs, outputs = specs
        self._context, self._stream, self._activations = context, stream, activations
        self._captures, self._launches, self._generation = captures, 0, -1
        self._graph: cuda_device.Graph | None = None
        self._slots: dict[str, Slot] = {}
        self._outputs = [spec.name for spec in outputs]
        try:
            if profile is not None:
                _agree(
                    context.set_optimization_profile_async(profile, stream.handle),
                    f"profile {profile}",
                )
                stream.synchronize()
            for spec in inputs:
                _agree(context.set_input_shape(spec.name, shapes[spec.name]), spec.name)
            self._settle()
            missing = context.infer_shapes()
            _agree(not missing, f"the shapes; it also needs {', '.join(missing)}")
            for spec in inputs:
                self._add(spec, shapes[spec.name])
            for spec in outputs:
                self._add(spec, tuple(context.get_tensor_shape(spec.name)))
        except BaseException:
            self.close()
            raise

    def _add(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        slot = self._slots[spec.name] = Slot(spec, shape)
        _agree(self._context.set_tensor_address(spec.name, slot.device.address), spec.name)

    def _settle(self) -> None:
        """Set the context's scratch memory, again if that has moved."""
        if self._generation == self._activations.generation:
            return
        size = self._context.update_device_memory_size_for_shapes()
        address = self._activations.reserve(size)
        self._context.set_device_memory(address, size)
        self._generation = self._activations.generation
        self._drop_graph()
        self._launches = 0

    def upload(self, name: str, array: np.ndarray) -> None:
        """Copy an input to the device."""
        slot = self._slots[name]
        assert slot.array is not None  # for the type checker: only `close` sets None
        np.copyto(slot.array, array)
        self._stream.upload(slot.device, slot.host, slot.size)
        slot.token = UNTOKENED

    def place(self, name: str, source: cuda_device.DeviceBuffer, token: int) -> None:
        """Copy an input that is on the device already, unless the last one was the same."""
        slot = self._slots[name]
        if slot.token != token:
            self._stream.duplicate(slot.device, source, slot.size)
            slot.token = token

    def launch(self, messages: Messages) -> None:
        """Queue the engine's work in the stream.

        Raises: EngineError: it does not start; the message has the library's reason.
        """
        self._settle()
        if self._graph is None and self._captures and self._launches:
            self._capture(messages)
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._execute(messages)
        self._launches += 1

    def results(self) -> dict[str, np.ndarray]:
        """Wait for the outputs and copy them."""
        for name in self._outputs:
            slot = self._slots[name]
            self._stream.download(slot.host, slot.device, slot.size)
        self._stream.synchronize()
        return {name: np.array(self._slots[name].array) for name in self._outputs}

    def _execute(self, messages: Messages) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise engine_error(f"the engine did not start: {messages.take()}")

    def _capture(self, messages: Messages) -> None:
        try:
            self._graph = self._stream.capture(lambda: self._execute(messages))
        except EngineError as error:
            self._captures = False
            _log.info("no CUDA graph for this shape: %s", error)

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def close(self) -> None:
        """Free the context, its buffers and its CUDA graph; closing twice is allowed."""
        with ExitStack() as cleanup:  # runs all callbacks, even if some fail
            for slot in self._slots.values():
                cleanup.callback(slot.close)
            self._slots.clear()
            self._context = None
            cleanup.callback(self._drop_graph)


def _agree(done: object, what: str) -> None:
    if not done:
        raise EngineError(f"the engine does not take {what}")
