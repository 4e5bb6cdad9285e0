"""The sessions of an adapter's package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sdexport.engines import Session
from sdexport.engines.closing import ClosesOnExit
from sdexport.runtime.component_backends import Backends, BackendSpec
from sdexport.runtime.component_sessions import ComponentSessions
from sdexport.runtime.expected_calls import ImageCall, expect_call
from sdexport.runtime.opening_ahead import gains
from sdexport.runtime.packages.package import Package


class AdapterSessions(ClosesOnExit):
    """Opens the components of an adapter when they are first needed; a context manager.

    Args:
      package: of an adapter. backends, options, low_memory, images: see ComponentSessions.
    """

    def __init__(
        self,
        package: Package,
        backends: Backends = "onnxruntime",
        options: Mapping[str, Any] | None = None,
        *,
        low_memory: bool = False,
        images: int | None = None,
    ) -> None:
        self.package = package
        self._fits = False
        self._components = ComponentSessions(
            package, backends, options or {}, {}, low_memory=low_memory, images=images
        )

    def check_once(self, check: Callable[[], object]) -> None:
        """Check whether the adapter fits the model, unless it passed that before.

        Args:
          check: the same in each call.
        """
        if not self._fits:
            check()
            self._fits = True

    def session(self, component: str) -> Session:
        """The open session of a component.

        Raises: PackageError: the package has no such component. EngineError: it cannot be opened,
          or everything is closed.
        """
        return self._components[component]

    def open(self, component: str, call: ImageCall | None) -> None:
        """Open a component; a large one gets ready for a call, if that is known.

        Raises: as `session` does.
        """
        session = self.session(component)
        if call is not None and gains(self.package, component, self.opened_with(component)):
            expect_call(self.package, component, session, call)

    def opened_with(self, component: str) -> BackendSpec:
        """The backend that runs a component, with all options of its session.

        Raises: MissingDependencyError: no backend is installed.
        """
        return self._components.opened_with(component)

    def finish(self, component: str) -> None:
        """Close a component that the image does not need any more, if it is the only one."""
        self._components.finish([component])

    def leave_room(self) -> None:
        """Make room for a graph of another package; see ComponentSessions.leave_room."""
        self._components.leave_room()

    def close(self) -> None:
        """Close every session; closing twice is allowed."""
        self._components.close()
