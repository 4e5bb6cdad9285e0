"""Prepare a graph for OpenVINO: rewritten and compiled for one size, and stored.

The session of the backend opens the result (engines/ov/graph_store.py). It is written in a process
of its own, so that OpenVINO's memory is given back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines import EngineError
from sdexport.engines.cache.engine_store import Built
from sdexport.engines.errors import InvalidArgumentError, MissingDependencyError, WorkerError
from sdexport.engines.messages import shown
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.ov.compiled_graph import BACKEND, Variant, installed_version
from sdexport.engines.ov.graph_store import GraphStore
from sdexport.engines.worker_process import run_in_worker, serve
from sdexport.runtime.component_engines import engine_path, package_binding
from sdexport.runtime.expected_calls import ExpectedCall, ImageCall, expected_call
from sdexport.runtime.packages.package import Package

PRECISIONS = ("f32", "bf16", "f16", "i8")


@dataclass(frozen=True)
class OpenVinoBuild:
    """What to prepare for.

    precision: of the arithmetic, see OpenVinoSession. call: the images.
    """

    call: ImageCall
    precision: str = "f32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InvalidArgumentError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {shown(self.precision)}"
            )


def prepare_component(
    package: Package,
    component: str,
    wanted: OpenVinoBuild,
    *,
    engine_dir: str | Path | None = None,
    rebuild_stale: bool = False,
) -> Built:
    """Prepare a component of a package, unless the present one is up to date.

    An interrupted build leaves no files that are used.

    Raises: MissingDependencyError: OpenVINO is not installed. PackageError: no such component, or
      one with an unknown dimension. EngineError: OpenVINO fails, the folder cannot be written,
      another process prepares the same graph, or the present one is stale.
    """
    version = installed_version()
    if not version:
        raise MissingDependencyError(
            "OpenVINO is not installed; run: pip install 'sdexport[openvino]'"
        )
    onnx = package.model_path(component)
    package.check_hashes(component)
    inputs, outputs = graph_specs(onnx)
    call = expected_call(package, component, inputs, wanted.call)
    plan = engine_path(package, component, BACKEND, engine_dir)
    store = GraphStore(
        component,
        package.model_digest(component),
        version,
        inputs,
        outputs,
        prepared=plan.parent,
        package=package_binding(package),
    )
    variant = Variant(
        wanted.precision, True, call.shapes, frozenset(call.constants), frozenset(call.shared)
    )
    return store.write(
        plan.parent,
        variant,
        _in_worker(onnx, component, wanted.precision, call),
        rebuild_stale=rebuild_stale,
        graph_sha256=graph_digest(onnx),
    )


def _in_worker(
    onnx: Path, component: str, precision: str, call: ExpectedCall
) -> Callable[[Path, Path], None]:
    def compile_into(model: Path, once: Path) -> None:
        arguments: dict[str, Any] = {
            "onnx": str(onnx.absolute()),
            "precision": precision,
            "model": str(model),
            "once": str(once),
            "shapes": {name: list(shape) for name, shape in call.shapes.items()},
            "constants": list(call.constants),
            "shared": list(call.shared),
        }
        try:
            run_in_worker("sdexport.builds.prepare_openvino", "write", arguments)
        except WorkerError as error:
            raise EngineError(f"{component}: OpenVINO cannot prepare it: {error}") from None

    return compile_into


def write(
    onnx: str,
    precision: str,
    model: str,
    once: str,
    shapes: dict[str, list[int]],
    constants: list[str],
    shared: list[str],
) -> None:
    """Compile a graph into two folders.

    Raises: EngineError: OpenVINO cannot compile it.
    """
    from sdexport.engines.ov.openvino_session import OpenVinoSession

    with OpenVinoSession(onnx, precision=precision) as session:
        session.compile_into(
            Path(model),
            Path(once),
            {name: tuple(shape) for name, shape in shapes.items()},
            constants=constants,
            shared=shared,
        )


if __name__ == "__main__":
    serve({"write": write})
