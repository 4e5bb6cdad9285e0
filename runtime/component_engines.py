"""Opening a component of a package: which backend, which built engine, and whether it fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from sdexport.engines import (
    AUTO,
    PLAN_BACKENDS,
    PREPARED_BACKEND,
    Session,
    choose,
    open_session,
)
from sdexport.engines.cache.engine_files import checked_files
from sdexport.engines.cache.remembered_hashes import nothing_remembered
from sdexport.engines.cache.sidecar import Sidecar, combined_digest
from sdexport.engines.cache.staleness import fitting_sidecar
from sdexport.engines.errors import EngineError, PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.engines.ort.prepared import prepared_graph
from sdexport.engines.ov import compiled_graph
from sdexport.engines.session import TensorSpec
from sdexport.runtime.models.components import LORA_GRAPHS, Role, tensors_of
from sdexport.runtime.packages.manifest import ComponentRecord
from sdexport.runtime.packages.package import Package
from sdexport.runtime.packages.trust import check_engine

_SUFFIXES = {PREPARED_BACKEND: "onnx", compiled_graph.BACKEND: "blob"}
_log = logging.getLogger(__name__)


def engine_path(
    package: Package, graph: str, backend: str, engine_dir: str | Path | None = None
) -> Path:
    """The file of the built engine of a graph, whether it exists or not.

    Args:
      engine_dir: where engines are, instead of the package's own engines folder.
    Returns: for OpenVINO a name that no file has: a graph has one for each of its variants in that
      folder, see engines/ov/compiled_graph.py.
    """
    folder = package.folder / "engines" if engine_dir is None else Path(engine_dir)
    suffix = _SUFFIXES.get(backend, "plan")
    return folder / backend / f"{graph}.{suffix}"


def usable_engine(
    package: Package, graph: str, backend: str, engine_dir: str | Path | None = None
) -> Path | None:
    """The built engine of a graph; None if there is none that may be used.

    Those in the package's own folder may not if its signature is required: see Trust.built_engines.
    """
    path = engine_path(package, graph, backend, engine_dir)
    is_trusted = engine_dir is not None or package.trust.built_engines
    return path if is_trusted and _is_built(path, graph, backend) else None


def _is_built(path: Path, graph: str, backend: str) -> bool:
    """Whether there is an engine at a path of `engine_path`, whatever its state."""
    if backend == compiled_graph.BACKEND:
        return bool(compiled_graph.plans_of(path.parent, graph))
    return os.path.lexists(path)


def check_own_folders(package: Package, backend: str, engine_dir: str | Path | None) -> None:
    """Check that the package's own folders of engines are no links, which lead out of it.

    Raises: EngineError: one is.
    """
    engines = package.folder / "engines"
    for folder in (engines, engines / backend) if engine_dir is None else ():
        if folder.is_symlink():
            raise EngineError(f"{folder} is a link; pass its target with --engine-dir (engine_dir)")


def package_binding(package: Package) -> str:
    """What an engine is bound to besides its graph: Sidecar.package_sha256.

    A digest over the paths and hashes of the package's files without reference/, which nothing
    that runs depends on. So it is the same for two exports of the same files, whatever exported
    them. "" for a folder without a manifest.
    """
    files = [
        (record.path, record.sha256)
        for record in package.manifest.every_file
        if not record.path.startswith("reference/")
    ]
    return combined_digest(files) if files else ""


def resolve_backend(
    package: Package,
    graph: str,
    backend: str,
    engine_dir: str | Path | None = None,
    images: int | None = None,
    precision: str = "f32",
) -> str:
    """The backend that runs a graph: `backend` itself, or for "auto" the best one; that is logged.

    Token graphs rarely have a TensorRT engine of their own; without one they run as by "auto".

    Args:
      images: how many are going to be generated, see sdexport.engines.choose.
      precision: of OpenVINO's arithmetic, if it is taken.
    Raises: MissingDependencyError: no backend is installed.
    """
    if backend == AUTO or not runs_on(package, graph, backend, engine_dir):
        requested = backend
        backend = choose(
            plan_of=lambda name: fitting_engine(package, graph, name, engine_dir, precision),
            images=images,
        )
        _log.info("%s: %s takes %s", graph, requested, backend)
    return backend


def fitting_engine(
    package: Package,
    graph: str,
    backend: str,
    engine_dir: str | Path | None,
    precision: str = "f32",
) -> Path | None:
    """As `usable_engine`; None also if no prepared graph would be used.

    That is one of this package, this processor and this version of the library; of OpenVINO also
    of this precision.
    """
    path = usable_engine(package, graph, backend, engine_dir)
    if path is None or backend not in _SUFFIXES:
        return path
    digest, binding = package.model_digest(graph), package_binding(package)
    if backend == compiled_graph.BACKEND:
        version = compiled_graph.installed_version()
        identity = {"digest": digest, "package": binding, "version": version}
        plans = compiled_graph.fresh_plans(path.parent, graph, precision=precision, **identity)
        return path if plans else None
    required = prepared_graph.requirements(
        digest=digest, package=binding, version=prepared_graph.installed_version()
    )
    return path if fitting_sidecar(path, required) else None


def runs_on(
    package: Package, graph: str, backend: str, engine_dir: str | Path | None = None
) -> bool:
    """Whether a backend can open a graph: False for a token graph without the engine it needs."""
    if "." not in graph or backend not in PLAN_BACKENDS:
        return True
    return usable_engine(package, graph, backend, engine_dir) is not None


def missing_engine(
    package: Package, graph: str, backend: str, engine_dir: str | Path | None = None
) -> str:
    """Why a backend cannot open a graph, and what to do; "" if `runs_on` is true."""
    if runs_on(package, graph, backend, engine_dir):
        return ""
    engine = engine_path(package, graph, backend, engine_dir)
    if os.path.lexists(engine):
        return _not_signed(engine)
    command = f"sdexport build PACKAGE --backend {backend}"
    if graph.partition(".")[2] not in LORA_GRAPHS:  # those are built by default
        command += f" --component {graph}"
    if not package.trust.built_engines:
        command += " --engine-dir DIR"
    return f"there is no engine of {graph} for {backend}; build it: {command}"


def open_component(
    package: Package,
    graph: str,
    backend: str = "onnxruntime",
    *,
    engine_dir: str | Path | None = None,
    **options: Any,
) -> Session:
    """Open a component or a token graph of a package; see sdexport.engines.open_session.

    Args:
      backend: "auto" takes the best that is installed, a built engine before all others.
      engine_dir: where engines are, instead of the package's own engines folder.
      options: of the backend's session.
    Raises: EngineError: it cannot be opened. PackageError: the graph lacks an input or output that
      the component must have, or the package changed on disk since it was loaded.
    """
    path, files = package.model_path(graph), package.model_files(graph)
    precision = options.get("precision", "f32")
    backend = resolve_backend(package, graph, backend, engine_dir, precision=precision)
    engine = engine_path(package, graph, backend, engine_dir)
    if backend == compiled_graph.BACKEND:
        options |= _openvino_options(package, graph, engine, engine_dir)
    elif _opens_engine(package, engine, backend, engine_dir):
        check_own_folders(package, backend, engine_dir)
        options |= {
            "plan": engine,
            "digest": package.model_digest(graph),
            "package": package_binding(package),
        }
    elif backend == PREPARED_BACKEND and package.hashes is not None and "." not in graph:
        options |= {
            "digest": package.model_digest(graph),
            "check": partial(package.check_hashes, graph),
        }
    component, _, further = graph.partition(".")
    spec = package.family.component(component)
    if backend == PREPARED_BACKEND and spec.role is Role.TEXT_ENCODER:
        options |= {"seldom": True}
    try:
        with nothing_remembered(package.reads_every_hash):
            session = open_session(path, backend, files=files, **options)
    except EngineError as error:
        raise _with_advice(error, package.manifest.components[component], backend) from error
    inputs, outputs = tensors_of(spec, further)
    try:
        _check_names(package, graph, "input", inputs, session.inputs)
        _check_names(package, graph, "output", outputs, session.outputs)
        if spec.role is Role.DENOISER and further and backend not in PLAN_BACKENDS:
            _check_adapter_inputs(package, graph, session.inputs)
        if backend != compiled_graph.BACKEND:  # it compiles, and checks, when it is called
            package.check_hashes(graph)
    except (PackageError, OSError):
        session.close()
        raise
    return session


def _openvino_options(
    package: Package, graph: str, engine: Path, engine_dir: str | Path | None
) -> dict[str, Any]:
    """Which compiled graphs OpenVINO may use; the user's cache only if hashes are compared.

    Raises: EngineError: the package's own folder of engines is a link.
    """
    if not package.manifest.every_file:
        return {}  # nothing identifies the graph
    options: dict[str, Any] = {
        "check": partial(package.check_hashes, graph),
        "digest": package.model_digest(graph),
        "package": package_binding(package),
        "cached": package.hashes is not None,
    }
    if _is_built(engine, graph, compiled_graph.BACKEND):
        check_own_folders(package, compiled_graph.BACKEND, engine_dir)
        if usable_engine(package, graph, compiled_graph.BACKEND, engine_dir) is None:
            _log.warning("%s", _not_signed(engine.parent))
        else:
            options["plan"] = engine
    return options


def _not_signed(engine: Path) -> str:
    return (
        f"{engine} is not covered by a signature; 'sdexport build --engine-dir DIR' builds "
        "engines that are used with --engine-dir DIR (engine_dir)"
    )


def _is_intact(engine: Path) -> bool:
    """Whether the files of an engine are those of its sidecar."""
    try:
        checked_files(engine, Sidecar.read(engine))
    except (EngineError, OSError):
        return False
    return True


def _opens_engine(
    package: Package, engine: Path, backend: str, engine_dir: str | Path | None
) -> bool:
    """Whether a backend opens a built engine, which may be missing if it needs one.

    Raises: PackageError: it needs one, and may not use that of the package's own folder.
      EngineError: the package's own prepared graph asks for sizes that no model needs, though
      its hash is that of its sidecar.
    """
    is_own = engine_dir is None and os.path.lexists(engine)
    if is_own and not package.trust.built_engines and backend in (*PLAN_BACKENDS, PREPARED_BACKEND):
        message = _not_signed(engine)
        if backend in PLAN_BACKENDS:
            raise PackageError(message)
        _log.warning("%s", message)
        return False
    if backend == PREPARED_BACKEND and is_own:
        try:
            check_engine(engine)
        except EngineError:
            if _is_intact(engine):  # else opening it says what is wrong, and takes another graph
                raise
    return backend in PLAN_BACKENDS or (backend == PREPARED_BACKEND and os.path.lexists(engine))


def _check_names(
    package: Package,
    graph: str,
    what: str,
    wanted: Collection[str],
    specs: tuple[TensorSpec, ...],
) -> None:
    names = [spec.name for spec in specs]
    missing = sorted(set(wanted).difference(names))
    if missing:
        raise PackageError(
            f"{package.folder}: {graph}: the graph has no {what} '{missing[0]}'; "
            f"it has {', '.join(names)}"
        )


def _check_adapter_inputs(package: Package, graph: str, specs: tuple[TensorSpec, ...]) -> None:
    from sdexport.runtime.adapters.declared_inputs import check_adapter_inputs

    component = graph.partition(".")[0]
    with parsing(PackageError, package.model_path(graph)):
        check_adapter_inputs(specs, package.manifest.components[component].inputs)


def _with_advice(error: EngineError, component: ComponentRecord, backend: str) -> EngineError:
    """The error, with a way out if the backend has no kernels for bfloat16."""
    if component.precision != "bf16" or not backend.startswith("onnxruntime"):
        return error
    return EngineError(
        f"{error}; the package is in bf16: use --backend openvino or tensorrt-rtx, or export it "
        "in another precision"
    )
