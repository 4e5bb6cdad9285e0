"""The sessions of a package: opened when they are first needed, shared by threads."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines import AUTO, EngineError, Session, SessionBase
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.session import Feeds, GraphSource
from sdexport.engines.session_options import SESSION_OPTIONS
from sdexport.runtime.component_backends import (
    Backends,
    BackendSpec,
    backend_of,
    check_backends,
    check_session_options,
)
from sdexport.runtime.component_engines import (
    missing_engine,
    open_component,
    resolve_backend,
    usable_engine,
)
from sdexport.runtime.expected_calls import ImageCall, expect_call
from sdexport.runtime.images.recorded_values import plain, same_or_each
from sdexport.runtime.opening_ahead import LARGE, OpeningAhead, gains, opens_at_once
from sdexport.runtime.packages.package import Package

EXTERNAL = "session"
"""Stands for the backend of a component that was open already."""


class ComponentSessions:
    """Opens the components of a package when they are first needed.

    Args:
      backends: for all components, or by component; see component_backends.py.
      options: of the backends' sessions; each session gets those that its backend knows.
      sessions: components that are open already; the caller closes them.
      low_memory: keep one component in memory at a time. Calls then wait for each other.
      images: how many are going to be generated, for the backend "auto"; None for many.
    Raises: InvalidArgumentError: unknown backends, components or options.
    """

    def __init__(
        self,
        package: Package,
        backends: Backends,
        options: Mapping[str, Any],
        sessions: Mapping[str, Session],
        *,
        low_memory: bool = False,
        images: int | None = None,
    ) -> None:
        self._images = images
        self._backends = check_backends(backends, tuple(package.manifest.components))
        check_session_options(self._backends, options)
        self._package, self._options = package, dict(options)
        self._external = dict(sessions)
        self._opened: dict[str, Session] = {}
        self._resolved: dict[str, str] = {}
        self._low_memory = low_memory
        self._last: str | None = None
        self._lock = threading.RLock()
        self._closed = False
        self._ahead = OpeningAhead(self._open_now)

    def __getitem__(self, component: str) -> Session:
        """Raises: PackageError: the package has no such component. EngineError: it cannot be
        opened, or everything is closed.
        """
        with self._lock:
            self._check_open()
            if component in self._external:
                return self._external[component]
            if self._low_memory:
                with self._package.model_files(component).unchanged():
                    return _TemporarySession(self, component, self._package.model_path(component))
            return self._open(component)

    def open_ahead(self, components: Iterable[str], call: ImageCall | None) -> None:
        """Begin to open large components in the background, in the order of their use.

        Args:
          call: what they will be called for, if it is known.
        """

        def expect(component: str, session: Session) -> None:
            if call is not None:
                expect_call(self._package, component, session, call)

        with self._lock:
            if self._low_memory or self._closed:
                return
            known = {*self._external, *self._opened}
            specs = {
                name: self.opened_with(name)
                for name in components
                if name not in known and name not in self._ahead
            }
            self._ahead.start(
                {name: spec for name, spec in specs.items() if gains(self._package, name, spec)},
                expect,
            )

    def open_meanwhile(self, component: str, coming: str, call: ImageCall | None) -> None:
        """Open a component now, if the one that is `coming` is still being opened.

        Only if that takes little time and memory; mapped weights are freed until it runs.

        Args:
          call: see open_ahead.
        """
        with self._lock:
            known = component in self._external or component in self._opened
            if known or call is None or self._closed or not self._ahead.is_opening(coming):
                return
            if opens_at_once(self._package, component, self.opened_with(component), call):
                session = self._open(component)
                expect_call(self._package, component, session, call)
                if session.mapped is not None:
                    session.trim()

    def backend_names(self) -> str:
        """The backends that were asked for, in words."""
        if self._external:
            return f"open sessions ({', '.join(self._external)})"
        if isinstance(self._backends, str):
            return self._backends
        return ", ".join(f"{name}={backend}" for name, backend in self._backends.items())

    def run(self, component: str, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run a component alone in memory: the others are trimmed or closed first."""
        with self._lock:
            return self.alone(component).run(feeds)

    def alone(self, component: str) -> Session:
        """The open session of a component; the others are trimmed or closed first."""
        with self._lock:
            self._check_open()
            if self._last != component:
                self.make_room(component)
            return self._open(component)

    def requested(self, component: str) -> str:
        """The backend that was asked for, "auto" included."""
        return backend_of(self._backends, component).name

    def missing_engine(self, graph: str) -> str:
        """Why the backend that was asked for cannot open a graph; see component_engines."""
        requested = backend_of(self._backends, graph)
        engine_dir = {**self._options, **requested.options}.get("engine_dir")
        return missing_engine(self._package, graph, requested.name, engine_dir)

    def opened_with(self, component: str) -> BackendSpec:
        """The backend that runs a component or a token graph, with all options of its session.

        Raises: MissingDependencyError: no backend is installed.
        """
        requested, backend = backend_of(self._backends, component), self._backend(component)
        options = {**self._options, **requested.options}
        several = not isinstance(self._backends, str) or backend != requested.name != AUTO
        if several:  # not every backend has every option
            known = {"engine_dir", *SESSION_OPTIONS[backend]}
            if backend == requested.name:
                known.update(requested.options)
            options = {name: value for name, value in options.items() if name in known}
        return BackendSpec(backend, options)

    def settings(self) -> dict[str, Any]:
        """The settings that may change an image's last bits: of Parameters, by name of the field.

        Raises: MissingDependencyError: no backend is installed.
        """
        components = self._package.manifest.components
        backends = {
            name: EXTERNAL if name in self._external else str(self._spec(name))
            for name in components
        }
        precisions = {name: component.precision for name, component in components.items()}
        options: dict[str, Any] = {}
        for name, value in self._options.items():
            if name != "engine_dir":
                with suppress(TypeError):
                    options[name] = plain(value)
        return {
            "backend": same_or_each(backends),
            "precision": same_or_each(precisions),
            "options": options,
            "engines": self._engines(backends),
        }

    def _engines(self, backends: Mapping[str, str]) -> tuple[str, ...]:
        """The components whose backend runs an engine or graph that was built before."""
        engine_dir = self._options.get("engine_dir")
        return tuple(
            name
            for name, backend in backends.items()
            if backend != EXTERNAL
            and usable_engine(self._package, name, self._backend(name), engine_dir)
        )

    def rest(self, components: Collection[str]) -> None:
        """Free large mapped weights of components that will not run for a while."""
        with self._lock:
            self.finish(components)
            for name, session in self._opened.items():
                if name.partition(".")[0] in components and (session.mapped or 0) >= LARGE:
                    session.trim()

    def forget(self, prefix: str) -> None:
        """Open the graphs whose names begin so anew, when they are needed next.

        Calls that run go on with the sessions that they have.
        """
        with self._lock:
            for name in [name for name in self._opened if name.startswith(prefix)]:
                del self._opened[name]

    def finish(self, components: Collection[str]) -> None:
        """Close components that the image does not need any more, if it is the only one."""
        with self._lock:
            for name in list(self._opened) if self._images == 1 else ():
                if name.partition(".")[0] in components:
                    self._opened.pop(name).close()

    def make_room(self, component: str | None = None) -> None:
        """Trim or close the other sessions, to make room for the files that this one maps.

        Args:
          component: None trims or closes all, for a graph that is opened elsewhere.
        """
        with self._lock:
            coming = self._opened.get(component) if component else None
            room = coming.mapped if coming is not None else None
            for other, session in list(self._opened.items()):
                kept = other == component or session.trim(room)
                if not kept:
                    self._opened.pop(other).close()
            self._last = component

    def leave_room(self) -> None:
        """Make room for a graph that is opened elsewhere, if one is kept in memory at a time."""
        if self._low_memory:
            self.make_room()

    def close(self) -> None:
        """Close every session that was opened here; closing twice is allowed."""
        with self._lock:
            self._closed = True
            self._ahead.close()
            for session in self._opened.values():
                session.close()
            self._opened.clear()

    def _open(self, component: str) -> Session:
        if component not in self._opened:
            ahead = self._ahead.take(component)
            self._opened[component] = ahead or self._open_now(
                component, self.opened_with(component)
            )
        return self._opened[component]

    def _open_now(self, component: str, spec: BackendSpec) -> Session:
        return open_component(self._package, component, spec.name, **spec.options)

    def _spec(self, component: str) -> BackendSpec:
        """The backend that runs a component, with the options that are its own."""
        own = backend_of(self._backends, component).options
        return BackendSpec(self._backend(component), own)

    def _backend(self, component: str) -> str:
        """The backend that runs a component; "auto" is resolved once."""
        if component not in self._resolved:
            requested = backend_of(self._backends, component)
            options = {**self._options, **requested.options}
            self._resolved[component] = resolve_backend(
                self._package,
                component,
                requested.name,
                options.get("engine_dir"),
                self._images,
                options.get("precision", "f32"),
            )
        return self._resolved[component]

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the pipeline is closed; load it again")


class _TemporarySession(SessionBase):
    """A component that is opened for each call, and may be closed after it to make room."""

    def __init__(self, components: ComponentSessions, component: str, path: Path) -> None:
        super().__init__(component, *graph_specs(path))
        self._components = components

    def source(self, feeds: Feeds) -> GraphSource:
        return self._components.alone(self.name).source(feeds)

    def nearest_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self._components.alone(self.name).nearest_sizes(sizes)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._components.run(self.name, feeds)


def chunks(count: int, limit: int | None) -> Iterator[slice]:
    """Slices of at most `limit` of `count` rows; one slice of all of them if `limit` is None."""
    step = limit or max(count, 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def finite(values: np.ndarray, component: str, where: str) -> np.ndarray:
    """`values` themselves.

    Raises: EngineError: they hold NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise EngineError(f"{component}: the output holds NaN or infinity ({where})")
    return values
