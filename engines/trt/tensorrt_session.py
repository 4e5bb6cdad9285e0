"""TensorRT and TensorRT-RTX as a Session, without PyTorch."""

from __future__ import annotations

import functools
import itertools
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines import cuda_device
from sdexport.engines.cache.profiles import narrowest, nearest
from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.session import (
    BoundSession,
    Feeds,
    GraphSource,
    Session,
    SessionBase,
    named_sizes,
)
from sdexport.engines.trt.execution_context import Context, Shape
from sdexport.engines.trt.library import library
from sdexport.engines.trt.library_calls import LibraryCalls
from sdexport.engines.trt.plan import check_fits, check_names, load_engine, read_sidecar, refit
from sdexport.engines.trt.runtime_cache import RuntimeCache
from sdexport.engines.trt.scratch_memory import shared_activations

_log = logging.getLogger(__name__)
MOST_SHAPES = 8
"""Shapes whose buffers and CUDA graphs are kept; the least recently used one is dropped first."""


class TensorRtSession(SessionBase):
    """A plan in TensorRT or TensorRT-RTX.

    The first call with a shape allocates its buffers, the next ones only copy, launch and wait.
    Calls from several threads take turns.

    Args:
      path: the ONNX file that the plan was built from, or another one of the same graph, if the
        plan is refittable. Its weights are used if they differ or the plan has none.
      backend: tensorrt or tensorrt-rtx.
      plan: the .plan file, with its sidecar in the same folder.
      digest, package: what the plan must have been built from, see staleness.Requirements; None is
        not compared.
      device: number of the GPU.
      cuda_graphs: launch the whole engine at once from the second or third call of a shape on.
      runtime_cache: TensorRT-RTX: file for compiled kernels; by default next to the plan.
      files: the ONNX file and its weights; their identity is compared before and after they are
        opened.
    Raises: FileNotFoundError: no plan. MissingDependencyError: the library or cuda-bindings is not
      installed. EngineError: no GPU, or a plan that does not fit; the message names the command
      that builds one.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        backend: str,
        plan: str | Path,
        digest: str | None = None,
        package: str | None = None,
        device: int = 0,
        cuda_graphs: bool = True,
        runtime_cache: str | Path | None = None,
        files: CheckedFiles = UNCHECKED,
    ) -> None:
        path, plan, lib = Path(path), Path(plan), library(backend)
        component = plan.stem
        trt = lib.load()
        sidecar = read_sidecar(plan, backend, component)
        try:
            gpu = cuda_device.gpu(device)
        except EngineError as error:
            raise EngineError(f"{component}: {error}") from error
        with files.unchanged():
            check_fits(sidecar, path, backend, gpu, digest=digest, package=package)
            inputs, outputs = graph_specs(path)
        super().__init__(component, inputs, outputs)
        self._source = GraphSource(plan, "plan")
        self._trt, self._device, self._profiles = trt, device, sidecar.profiles
        self._graph_sha256 = sidecar.graph_sha256
        self._calls = LibraryCalls(trt, lib.name, component)
        cuda_device.use_device(device)
        with files.unchanged():
            self._runtime, self._engine = load_engine(trt, plan, path, sidecar, digest, self._calls)
        names = [spec.name for spec in (*inputs, *outputs)]
        check_names(trt, self._engine, sidecar, names, self._calls)
        self._config: Any = None
        self._cache: RuntimeCache | None = None
        self._captures = cuda_graphs and not lib.runtime_cache
        if lib.runtime_cache:
            cache = Path(runtime_cache) if runtime_cache else plan.with_suffix(".cache")
            self._configure(cuda_graphs, cache, sidecar.files[plan.name].sha256)
        self._shapes: OrderedDict[tuple[tuple[int, ...], ...], Shape] = OrderedDict()
        self._tokens = itertools.count(1)
        self.stream = cuda_device.Stream()
        self._activations = shared_activations(device)
        self._activations.join()

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _Uploaded(self, constants, shared)

    def source(self, feeds: Feeds) -> GraphSource:
        shapes = {name: value.shape for name, value in feeds.items()}
        narrowest(self.name, self._profiles, named_sizes(self.inputs, shapes))
        return super().source(feeds)

    def nearest_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return nearest(self._profiles, sizes)

    def refit(self, path: str | Path) -> None:
        """Replace the weights by those of another ONNX file of the same graph.

        Raises: EngineError: the graph is another one, the plan is not refittable, or the library
          fails.
        """
        path = Path(path)
        if graph_digest(path) != self._graph_sha256:
            raise EngineError(f"{self.name}: {path} is another graph; its weights do not fit")
        with self._activations.lock:
            self._check_open()
            cuda_device.use_device(self._device)
            self._drop_shapes()  # recorded CUDA graphs may refer to the old weights
            self._refits += 1
            refit(self._trt, self._engine, path, self.name, self._calls)

    def _drop_shapes(self) -> None:
        while self._shapes:
            self._shapes.popitem()[1].close()

    def _configure(self, cuda_graphs: bool, cache: Path, plan_sha256: str) -> None:
        """Options of TensorRT-RTX's execution contexts.

        With lazy specialization, the default, the library compiles kernels in a thread of its own,
        which logs. A destructor holds Python's lock while it waits for that thread, and the thread
        waits for the lock to call the logger.
        """
        trt, engine = self._trt, self._engine
        done, value = self._calls.done, self._calls.value
        self._config = config = value("gives no configuration", engine.create_runtime_config)
        done(
            "does not let the caller give scratch memory",
            config.set_execution_context_allocation_strategy,
            trt.ExecutionContextAllocationStrategy.USER_MANAGED,
        )
        done(
            "does not compile kernels eagerly",
            setattr,
            config,
            "dynamic_shapes_kernel_specialization_strategy",
            trt.DynamicShapesKernelSpecializationStrategy.EAGER,
        )
        if cuda_graphs:
            whole = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            done("does not use CUDA graphs", setattr, config, "cuda_graph_strategy", whole)
        self._cache = RuntimeCache(config, cache, plan_sha256, self._calls)

    def _context(self, profile: int) -> Context:
        how = self._config
        if how is None:
            how = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        value, engine, failure = self._calls.value, self._engine, "gives no execution context"
        most = int(value(failure, engine.get_device_memory_size_for_profile_v2, profile))
        own = value(failure, engine.create_execution_context, how)
        return Context(own, self._calls, profile if len(self._profiles) > 1 else None, most)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self.compute(feeds, {})

    def compute(self, feeds: Feeds, constants: Mapping[str, Constant]) -> dict[str, np.ndarray]:
        """Run with checked feeds, and with constants that are on the device already."""
        with self._activations.lock:
            self._check_open()
            cuda_device.use_device(self._device)
            shape = self._shape(feeds, constants)
            for name, array in feeds.items():
                shape.upload(name, array)
            for name, constant in constants.items():
                shape.place(name, constant.buffer, constant.token)
            shape.launch()
            return shape.results()

    def _shape(self, feeds: Feeds, constants: Mapping[str, Constant]) -> Shape:
        shapes = {n: a.shape for n, a in feeds.items()} | {n: c.shape for n, c in constants.items()}
        key = tuple(shapes[spec.name] for spec in self.inputs)
        found = self._shapes.get(key)
        if found is not None:
            self._shapes.move_to_end(key)
            return found
        sizes = named_sizes(self.inputs, shapes)
        index = narrowest(self.name, self._profiles, sizes)
        while len(self._shapes) >= MOST_SHAPES:
            self._shapes.popitem(last=False)[1].close()
        shape = Shape(
            self._context(index),
            (self.inputs, self.outputs),
            shapes,
            self.stream,
            self._activations,
            captures=self._captures,
        )
        self._shapes[key] = shape
        return shape

    def constants(self, values: Feeds) -> dict[str, Constant]:
        """Upload arrays once for many runs; `release` frees them."""
        with self._activations.lock:
            self._check_open()
            cuda_device.use_device(self._device)
            found: dict[str, Constant] = {}
            try:
                for name, array in values.items():
                    found[name] = Constant(self.stream, array, next(self._tokens))
            except BaseException:
                for constant in found.values():
                    constant.close()
                raise
            return found

    def release(self, constants: Mapping[str, Constant]) -> None:
        """Free uploaded arrays."""
        with self._activations.lock:
            cuda_device.use_device(self._device)
            for constant in constants.values():
                constant.close()

    def _release(self) -> None:
        with (
            self._activations.lock,
            ExitStack() as cleanup,
        ):  # runs all callbacks, even if some fail
            cleanup.callback(self._activations.leave)
            cleanup.callback(self._forget)
            cleanup.callback(self.stream.close)
            for shape in self._shapes.values():
                cleanup.callback(shape.close)
            self._shapes.clear()
            if self._cache is not None:
                cleanup.callback(self._cache.save)
            cuda_device.use_device(self._device)

    def _forget(self) -> None:
        """Drop the library's objects, each before the one it was created from."""
        self._cache = self._config = self._engine = self._runtime = None


class Constant:
    """An input in device memory. token: a number of its own within the session."""

    def __init__(self, stream: cuda_device.Stream, array: np.ndarray, token: int) -> None:
        self.shape, self.token = array.shape, token
        self.buffer = cuda_device.DeviceBuffer(array.nbytes)
        try:
            host = cuda_device.PinnedBuffer(array.nbytes)
            try:
                np.copyto(host.view(array.shape, array.dtype.name), array)
                stream.upload(self.buffer, host, array.nbytes)
                stream.synchronize()
            finally:
                host.close()
        except BaseException:
            self.buffer.close()
            raise

    def close(self) -> None:
        """Free the memory; closing twice is allowed."""
        self.buffer.close()


class _Uploaded(BoundSession):
    """Bound inputs in device memory."""

    def __init__(self, parent: TensorRtSession, constants: Feeds, shared: Sequence[str]) -> None:
        super().__init__(parent, constants, shared)
        self._owner = parent
        self._uploaded = parent.constants(self._constants)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        checked = self._checked_feeds(feeds)
        return self._owner.compute({name: checked[name] for name in feeds}, self._uploaded)

    def _release(self) -> None:
        super()._release()
        self._owner.release(self._uploaded)
        self._uploaded = {}


open_tensorrt = functools.partial(TensorRtSession, backend="tensorrt")
open_tensorrt_rtx = functools.partial(TensorRtSession, backend="tensorrt-rtx")
