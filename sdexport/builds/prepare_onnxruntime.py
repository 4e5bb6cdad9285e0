"""Prepare an ONNX graph for ONNX Runtime on this processor; as a program, the worker.

The graph is rewritten (graphs.cpu.cpu_rewrites), optimised by ONNX Runtime and saved with its
weights in the layout that the kernels read. That happens in a separate process, which can be
interrupted and whose memory is free afterwards.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdexport.engines import PREPARED_BACKEND, EngineError
from sdexport.engines.cache.engine_store import Built, build_once
from sdexport.engines.cache.processor import kernel_target
from sdexport.engines.cache.sidecar import Sidecar, model_digest
from sdexport.engines.errors import MissingDependencyError, WorkerError
from sdexport.engines.messages import import_failure
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.ort.prepared.prepared_graph import (
    MULTIPLES,
    PASSES,
    REWRITES_VERSION,
)
from sdexport.engines.telemetry import import_onnxruntime
from sdexport.engines.worker_process import run_in_worker, serve


def prepare_graph(
    onnx: str | Path,
    plan: str | Path,
    *,
    component: str,
    digest: str | None = None,
    package: str = "",
    rebuild_stale: bool = False,
) -> Built:
    """Prepare a graph for this processor, unless the present one is up to date.

    An interrupted build leaves no files.

    Args:
      onnx: the .onnx file. plan: the .onnx to write; weights and sidecar go to the same folder.
      digest: sdexport.engines.cache.sidecar.model_digest of `onnx`, if it is known already.
      package: Sidecar.package_sha256 of the package that `onnx` belongs to.
      rebuild_stale: replace one that was built from or for something else.
    Raises: FileNotFoundError: no such ONNX file. MissingDependencyError: onnx or ONNX Runtime is
      not installed. EngineError: ONNX Runtime fails, the folder cannot be written, another process
      prepares the same graph, or the present one is stale.
    """
    onnx, plan = Path(onnx), Path(plan)
    if not onnx.is_file():
        raise FileNotFoundError(f"no model file {onnx}")
    wanted = replace(_wanted(onnx, component, digest), package_sha256=package)

    def build(folder: Path) -> None:
        paths = {"onnx": str(onnx.absolute()), "plan": str(folder / plan.name)}
        try:
            run_in_worker("sdexport.builds.prepare_onnxruntime", "write", paths)
        except WorkerError as error:
            raise EngineError(f"{component}: ONNX Runtime cannot prepare it: {error}") from None

    return build_once(plan, wanted, build, rebuild_stale=rebuild_stale)


def _wanted(onnx: Path, component: str, digest: str | None) -> Sidecar:
    """The sidecar of the prepared graph to build."""
    try:
        onnxruntime = import_onnxruntime()

        from sdexport.graphs.cpu.cpu_rewrites import CpuGraph
    except ImportError as error:
        raise MissingDependencyError(
            f"{error.name or 'ONNX Runtime'} is not installed; "
            f"run: pip install 'sdexport[cpu,onnx]'{import_failure(error)}"
        ) from error
    inputs, outputs = graph_specs(onnx)
    multiple = CpuGraph(onnx).multiple()
    images = [spec.name for spec in inputs if len(spec.shape) == 4 and multiple > 1]
    return Sidecar(
        component=component,
        backend=PREPARED_BACKEND,
        library_version=onnxruntime.__version__,
        onnx_sha256=digest or model_digest(onnx),
        graph_sha256=graph_digest(onnx),
        target=kernel_target(),
        profiles=(),
        options={PASSES: REWRITES_VERSION, MULTIPLES: dict.fromkeys(images, multiple)},
        inputs=inputs,
        outputs=outputs,
    )


def write(onnx: str, plan: str) -> None:
    """Write a prepared graph and its weights.

    Raises: ONNX Runtime's own errors. PackageError: the weights are truncated.
    """
    import onnx_ir as ir

    from sdexport.engines.ort.runtime_library import DATA_FOLDER, ort, store_optimized
    from sdexport.graphs.cpu.cpu_rewrites import CpuGraph

    graph = CpuGraph(Path(onnx))
    graph.rewrite()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(DATA_FOLDER, str(Path(onnx).parent))
    store_optimized(options, Path(plan))
    content = ir.to_proto(graph.model).SerializeToString()
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    serve({"write": write})
