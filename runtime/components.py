"""The open sessions of a package, shared by threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from engines import EngineError, Session
from runtime.package import Package


class Components:
    """Opens the graphs of a package when they are first needed.

    Args:
      backend, options: see engines.open_session.
      sessions: components that are open already; they stay the caller's to close.
    """

    def __init__(
        self,
        package: Package,
        backend: str,
        options: Mapping[str, Any],
        sessions: Mapping[str, Session],
    ) -> None:
        self._package, self._backend, self._options = package, backend, options
        self._given = dict(sessions)
        self._opened: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __getitem__(self, component: str) -> Session:
        """Raises: PackageError: the package has no such component. EngineError: it cannot be
        opened, or everything is closed.
        """
        with self._lock:
            if self._closed:
                raise EngineError("the pipeline is closed; load it again")
            if component in self._given:
                return self._given[component]
            if component not in self._opened:
                self._opened[component] = self._package.open(
                    component, self._backend, **self._options
                )
            return self._opened[component]

    def close(self) -> None:
        """Close every session that was opened here; closing twice is allowed."""
        with self._lock:
            self._closed = True
            for session in self._opened.values():
                session.close()
            self._opened.clear()


def chunks(count: int, most: int | None) -> Iterator[slice]:
    """Slices of at most so many of `count` rows; all of them at once if `most` is None."""
    step = most or max(count, 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def finite(values: np.ndarray, component: str, where: str) -> np.ndarray:
    """`values`, if they are.

    Raises: EngineError: NaN or infinity is among them.
    """
    if not np.isfinite(values).all():
        raise EngineError(f"{component}: NaN or infinity came out for {where}")
    return values
