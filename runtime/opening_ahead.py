"""Opening large components in a thread while the text encoder opens and works.

To open a graph is mostly the work of one core. So the denoiser is opened in a thread from the
beginning of a pipeline's first call, after the encoder of images if that is needed, and taken from
it when it is needed. Small graphs open faster than that would gain. While the caller waits for it,
the caller opens the decoder, if that is prepared or in the user's cache.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdexport.engines import Session
from sdexport.engines.cache import graph_cache
from sdexport.engines.cache.staleness import fitting_sidecar
from sdexport.engines.errors import PackageError
from sdexport.engines.guarded_files import MIB
from sdexport.engines.ort.prepared import prepared_graph
from sdexport.engines.ov import compiled_graph
from sdexport.engines.ov.compiled_graph import Variant
from sdexport.runtime.component_backends import BackendSpec
from sdexport.runtime.component_engines import fitting_engine, package_binding, usable_engine
from sdexport.runtime.expected_calls import ImageCall, expected_call
from sdexport.runtime.packages.package import Package

LARGE = 64 * MIB
"""Bytes of weights from which on it pays to open a component ahead, or to free mapped weights while
the component does not run."""
_BACKENDS = ("onnxruntime", "openvino")
"""Those that run on the CPU; the others are not tested in this way."""
_log = logging.getLogger(__name__)


class _Opening:
    """A component that is being opened, and what came of it."""

    def __init__(self, spec: BackendSpec) -> None:
        self.spec = spec
        self.session: Session | None = None
        self.failure: BaseException | None = None
        self.done = threading.Event()


class OpeningAhead:
    """Components that are opened in a thread; the caller serialises calls.

    Args:
      open_one: opens a component with a backend.
    """

    def __init__(self, open_one: Callable[[str, BackendSpec], Session]) -> None:
        self._open_one = open_one
        self._openings: dict[str, _Opening] = {}
        self._is_closed = threading.Event()

    def __contains__(self, component: str) -> bool:
        return component in self._openings

    def is_opening(self, component: str) -> bool:
        """Whether a component is being opened, so that `take` would wait."""
        opening = self._openings.get(component)
        return opening is not None and not opening.done.is_set()

    def start(
        self, specs: Mapping[str, BackendSpec], then: Callable[[str, Session], object]
    ) -> None:
        """Begin to open components, in this order.

        Args:
          then: called with the name and the session of each, before it can be taken.
        """
        new = {name: _Opening(spec) for name, spec in specs.items()}
        if not new:
            return
        self._openings |= new
        try:
            threading.Thread(target=self._work, args=[new, then], name="sdexport-open").start()
        except RuntimeError as error:  # they are opened when they are needed
            for name in new:
                del self._openings[name]
            _log.info("nothing is opened ahead: %s", error)

    def take(self, component: str) -> Session | None:
        """The session of a component, as soon as it is open; None if nothing opens it.

        Raises: what opening it raised; it can be opened again.
        """
        opening = self._openings.get(component)
        if opening is None:
            return None
        opening.done.wait()
        del self._openings[component]
        if opening.failure is not None:
            raise opening.failure
        return opening.session

    def close(self) -> None:
        """Wait for what is being opened, and close what was not taken."""
        self._is_closed.set()
        for opening in self._openings.values():
            opening.done.wait()
            if opening.session is not None:
                opening.session.close()
        self._openings.clear()

    def _work(
        self, openings: Mapping[str, _Opening], then: Callable[[str, Session], object]
    ) -> None:
        for name, opening in openings.items():
            if not self._is_closed.is_set():
                try:
                    opening.session = session = self._open_one(name, opening.spec)
                    then(name, session)
                except BaseException as error:  # noqa: BLE001  `take` raises it
                    opening.failure = error
                    if opening.session is not None:
                        opening.session.close()
            opening.done.set()


def gains(package: Package, component: str, spec: BackendSpec) -> bool:
    """Whether a component takes so long to open that it should be opened ahead."""
    if spec.name not in _BACKENDS or (os.cpu_count() or 1) < 2:
        return False
    size = 0
    with suppress(OSError):
        for file in (package.folder / component.partition(".")[0]).iterdir():
            size += file.stat().st_size
    return size >= LARGE


def opens_at_once(package: Package, graph: str, spec: BackendSpec, call: ImageCall) -> bool:
    """Whether a graph probably opens for a call with little time and memory, by sidecars.

    That is what was prepared or is in the user's cache. To compile or optimise two graphs at once
    would take memory for both.
    """
    if spec.name == prepared_graph.BACKEND:
        return _is_mapped(package, graph, spec.options)
    return spec.name == compiled_graph.BACKEND and _is_compiled(package, graph, spec.options, call)


def _is_mapped(package: Package, graph: str, options: Mapping[str, Any]) -> bool:
    """Whether ONNX Runtime maps a graph that was prepared, or that is in the user's cache."""
    from sdexport.engines.ort.cpu_session import is_cached, uses_prepared  # with ONNX Runtime

    options = dict(options)
    engine_dir = options.pop("engine_dir", None)
    if not uses_prepared(options):
        return False
    if usable_engine(package, graph, prepared_graph.BACKEND, engine_dir) is not None:
        return fitting_engine(package, graph, prepared_graph.BACKEND, engine_dir) is not None
    if package.hashes is None or not package.manifest.every_file:
        return False
    return is_cached(package.model_path(graph), package.model_digest(graph), options)


def _is_compiled(package: Package, graph: str, options: Mapping[str, Any], call: ImageCall) -> bool:
    """Whether OpenVINO opens a graph for a call without compiling it."""
    if not package.manifest.every_file:
        return False
    variant = _variant(package, graph, options, call)
    if variant is None:
        return False
    digest, version = package.model_digest(graph), compiled_graph.installed_version()
    return any(
        fitting_sidecar(
            compiled_graph.plan_path(folder, name, variant),
            compiled_graph.requirements(digest=digest, package=binding, version=version),
        )
        for folder, name, binding in _compiled_in(package, graph, options, digest)
    )


def _variant(
    package: Package, graph: str, options: Mapping[str, Any], call: ImageCall
) -> Variant | None:
    """What a session with these options looks for; None if it compiles in any case."""
    is_stored = options.get("device", "CPU") == "CPU" and options.get("cache_dir") is None
    if not is_stored or not options.get("static", True):
        return None
    try:
        expected = expected_call(package, graph, package.graph_inputs(graph), call)
    except PackageError:
        return None  # to open it says what is wrong
    rewrite = bool(options.get("rewrite", True))
    bound = [frozenset(expected.constants), frozenset(expected.shared)]
    if not (expected.constants and rewrite):
        bound = []
    return Variant(options.get("precision", "f32"), rewrite, expected.shapes, *bound)


def _compiled_in(
    package: Package, graph: str, options: Mapping[str, Any], digest: str
) -> Iterator[tuple[Path, str, str | None]]:
    """Folders that a session opens compiled graphs from.

    Yields: with what the names of their files begin, and the package that they must be built for.
    """
    prepared = usable_engine(package, graph, compiled_graph.BACKEND, options.get("engine_dir"))
    if prepared is not None:
        yield prepared.parent, graph, package_binding(package)
    cache = graph_cache.folder(graph_cache.OPENVINO)
    if cache is not None and package.hashes is not None:
        yield cache, compiled_graph.cached_name(digest, graph), None
