"""Everything on the GPU for one combination of input shapes, created once and reused."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.engines import cuda_device
from sdexport.engines.errors import EngineError
from sdexport.engines.session import TensorSpec
from sdexport.engines.trt.library_calls import LibraryCalls
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


@dataclass(frozen=True)
class Context:
    """The library's execution context for one optimization profile of an engine.

    own: the library's object. calls: to call it with.
    profile: index of the profile, or None if there is only one.
    most_scratch: bytes of scratch memory that no shape of the profile exceeds.
    """

    own: Any
    calls: LibraryCalls
    profile: int | None
    most_scratch: int

    def scratch_size(self) -> int:
        """Bytes of scratch memory for the shapes that are set.

        Raises: EngineError: the library gives no size. It says 0 then, and logs why at best.
        """
        failure = "gives no size of its scratch memory"
        size = int(self.calls.value(failure, self.own.update_device_memory_size_for_shapes))
        if size < 0 or self.calls.logged_errors() or (size == 0 and self.most_scratch > 0):
            raise self.calls.error(failure, f"it gave {size} bytes of at most {self.most_scratch}")
        return size


class Shape:
    """An execution context with buffers and, where it captures, a CUDA graph.

    Args:
      specs: inputs and outputs. shapes: of the inputs.
      captures: record the launch into a CUDA graph on the second call; the library does lazy
        initialization in the first.
    Raises: EngineError: the library rejects the shapes, or device memory is used up.
    """

    def __init__(
        self,
        context: Context,
        specs: tuple[Specs, Specs],
        shapes: Mapping[str, tuple[int, ...]],
        stream: cuda_device.Stream,
        activations: Activations,
        *,
        captures: bool,
    ) -> None:
        inputs, outputs = specs
        self._context: Context | None = context
        self._stream, self._activations = stream, activations
        self._captures, self._launches, self._generation = captures, 0, -1
        self._graph: cuda_device.Graph | None = None
        self._slots: dict[str, Slot] = {}
        self._outputs = [spec.name for spec in outputs]
        try:
            self._set_shapes(context, inputs, shapes)
            self._settle()
            for spec in inputs:
                self._add(context, spec, shapes[spec.name])
            for spec in outputs:
                self._add(context, spec, _output_shape(context, spec.name))
        except BaseException:
            self.close()
            raise

    def _set_shapes(
        self, context: Context, inputs: Specs, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        own, value = context.own, context.calls.value
        if context.profile is not None:
            failure = f"does not take profile {context.profile}"
            value(failure, own.set_optimization_profile_async, context.profile, self._stream.handle)
            self._stream.synchronize()
        for spec in inputs:
            shape = shapes[spec.name]
            value(f"does not take '{spec.name}' {shape}", own.set_input_shape, spec.name, shape)
        missing = value("does not take these shapes", own.infer_shapes)
        if missing:
            raise context.calls.error(
                "does not take these shapes", f"it also needs {', '.join(missing)}"
            )

    def _add(self, context: Context, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        slot = self._slots[spec.name] = Slot(spec, shape)
        failure, address = f"does not take the address of '{spec.name}'", slot.device.address
        context.calls.value(failure, context.own.set_tensor_address, spec.name, address)

    def _settle(self) -> None:
        """Set the context's scratch memory, again if that has moved."""
        context = self._context
        if context is None or self._generation == self._activations.generation:
            return
        size = context.scratch_size()
        address = self._activations.reserve(size)
        context.calls.done(
            "does not take its scratch memory", context.own.set_device_memory, address, size
        )
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

    def launch(self) -> None:
        """Queue the engine's work in the stream.

        Raises: EngineError: it does not start; the message has the library's reason.
        """
        self._settle()
        if self._graph is None and self._captures and self._launches:
            self._capture()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._execute()
        self._launches += 1

    def results(self) -> dict[str, np.ndarray]:
        """Wait for the outputs and copy them."""
        for name in self._outputs:
            slot = self._slots[name]
            self._stream.download(slot.host, slot.device, slot.size)
        self._stream.synchronize()
        return {name: np.array(self._slots[name].array) for name in self._outputs}

    def _execute(self) -> None:
        assert self._context is not None  # for the type checker: only `close` sets None
        calls, own = self._context.calls, self._context.own
        calls.value("does not start the engine", own.execute_async_v3, self._stream.handle)

    def _capture(self) -> None:
        try:
            self._graph = self._stream.capture(self._execute)
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


def _output_shape(context: Context, name: str) -> tuple[int, ...]:
    """Raises: EngineError: the library does not know it, though all shapes of inputs are set."""
    failure = f"gives no shape of '{name}'"
    shape = tuple(context.calls.value(failure, context.own.get_tensor_shape, name))
    if any(size < 0 for size in shape):
        raise context.calls.error(failure, f"it gave {shape}")
    return shape
