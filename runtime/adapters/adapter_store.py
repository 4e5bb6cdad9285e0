"""The packages of adapters that a pipeline has opened, shared by its calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from sdexport.engines.closing import ClosesOnExit
from sdexport.engines.errors import EngineError, InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import FileIdentity
from sdexport.engines.session_options import SESSION_OPTIONS
from sdexport.runtime.adapters.adapter_sessions import AdapterSessions
from sdexport.runtime.component_backends import Backends, backend_of
from sdexport.runtime.models.components import EXPORT_OPTIONS, AdapterKind
from sdexport.runtime.packages.manifest import MANIFEST
from sdexport.runtime.packages.package import Package
from sdexport.runtime.packages.trust import WARN

MOST_IDLE = 2
"""Adapters that stay open in addition to those of the last call, the last used ones."""
_Key = tuple[object, ...]


class OpenAdapter:
    """An adapter that a call uses; `release` it afterwards."""

    def __init__(self, store: AdapterStore, key: _Key, sessions: AdapterSessions) -> None:
        self._store, self._key, self.sessions = store, key, sessions
        self.package = sessions.package

    def release(self) -> None:
        """Say that the call does not use it any more."""
        self._store._release(self._key)


class OpenedAdapters:
    """The adapters of one kind that a call uses; iterating gives each OpenAdapter.

    Args:
      store: of the pipeline. sources: the package of each, or its folder. kind: of all.
      check: raises what it is in a package that does not fit the call.
    Attributes:
      packages: of each; they stay known after `close`.
    Raises: see AdapterStore.open; what `check` raises. No adapter stays in use then.
    """

    def __init__(
        self,
        store: AdapterStore,
        sources: Iterable[str | PathLike[str] | Package],
        kind: AdapterKind,
        check: Callable[[Package], object] = lambda package: None,
    ) -> None:
        self._opened: list[OpenAdapter] = []
        try:
            for source in sources:
                self._opened.append(store.open(source, kind))
                check(self._opened[-1].package)
        except BaseException:
            self.close()
            raise
        self.packages = tuple(each.package for each in self._opened)

    def __iter__(self) -> Iterator[OpenAdapter]:
        return iter(self._opened)

    def close(self) -> None:
        """Release the adapters; closing twice is allowed."""
        while self._opened:
            self._opened.pop().release()


class AdapterStore(ClosesOnExit):
    """Opens packages of adapters for a pipeline. Safe to call from several threads.

    Args:
      package: of the pipeline; what it required of its own package is required of adapters too.
      backends, options, low_memory, images: of the pipeline's sessions, see ComponentSessions.
    """

    def __init__(
        self,
        package: Package,
        backends: Backends,
        options: Mapping[str, Any],
        *,
        low_memory: bool = False,
        images: int | None = None,
    ) -> None:
        self._package, self._backends, self._options = package, backends, options
        self._images, self._low_memory = images, low_memory
        self._keeps_none = low_memory or images == 1
        self._open: dict[_Key, AdapterSessions] = {}
        self._users: dict[_Key, int] = {}
        self._lock = threading.RLock()
        self._closed = False

    def open(self, source: str | PathLike[str] | Package, kind: AdapterKind) -> OpenAdapter:
        """Open an adapter, or return it as it is open.

        Args:
          source: the folder of its package, or the package.
        Raises: InvalidArgumentError: a package of something else. PackageError: a package that was
          loaded with less than the pipeline requires. FileNotFoundError, PackageError: see
          Package.load.
        """
        if isinstance(source, Package):
            self._check_required(source)
        with self._lock:
            if self._closed:
                raise EngineError("the pipeline is closed; load it again")
            key = _key(source)
            opened = self._open.get(key)
            if opened is not None:
                package = opened.package
            else:
                package = source if isinstance(source, Package) else self._load(Path(source))
            _check_kind(package, kind)
            self._open.pop(key, None)  # the last used one comes last
            self._open[key] = self._sessions(package) if opened is None else opened
            self._users[key] = self._users.get(key, 0) + 1
            return OpenAdapter(self, key, self._open[key])

    def close_others(self) -> None:
        """Close adapters that no call uses, except the last used ones; see MOST_IDLE."""
        with self._lock:
            idle = [key for key in self._open if key not in self._users]
            for key in idle[: max(len(idle) - MOST_IDLE, 0)]:
                self._open.pop(key).close()

    def close(self) -> None:
        """Close every adapter; closing twice is allowed."""
        with self._lock:
            self._closed = True
            for sessions in self._open.values():
                sessions.close()
            self._open.clear()

    def _release(self, key: _Key) -> None:
        with self._lock:
            self._users[key] -= 1
            if self._users[key]:
                return
            del self._users[key]
            if self._keeps_none and key in self._open:
                self._open.pop(key).close()

    def _check_required(self, package: Package) -> None:
        """Raises: PackageError: it was loaded with less than what is required of the model's."""
        ours, own = self._package, package
        missing = [
            option
            for option, is_met in (
                ("trusted_key", ours.trust.key in (None, own.trust.key)),
                ("trust", ours.trust.policy in (WARN, own.trust.policy)),
                ("verify", ours.hashes is None or own.hashes is not None),
                ("verify_hashes", own.reads_every_hash or not ours.reads_every_hash),
            )
            if not is_met
        ]
        if missing:
            raise PackageError(
                f"{package.folder}: this package was loaded without what the pipeline requires "
                f"({', '.join(missing)}); give its folder, or load it with the same settings"
            )

    def _load(self, folder: Path) -> Package:
        trust = self._package.trust
        return Package.load(
            folder,
            verify=self._package.hashes is not None,
            verify_hashes=self._package.reads_every_hash,
            trusted_key=trust.key,
            trust=trust.policy,
            wait=False,
        )

    def _sessions(self, package: Package) -> AdapterSessions:
        """Sessions on the pipeline's backends, with those of its options that they have."""
        specs = {name: backend_of(self._backends, name) for name in package.manifest.components}
        known = [SESSION_OPTIONS.get(spec.name) for spec in specs.values()]
        options = {
            name: value
            for name, value in self._options.items()
            if name != "engine_dir" and any(each is None or name in each for each in known)
        }
        backends = {name: str(spec) for name, spec in specs.items()}
        return AdapterSessions(
            package, backends, options, low_memory=self._low_memory, images=self._images
        )


def recorded_identity(package: Package) -> tuple[str, str]:
    """The name of an adapter's folder and the digest of its package, as images record them."""
    return package.folder.resolve().name, package.digest or ""


def _key(source: str | PathLike[str] | Package) -> _Key:
    """What a package is recognised by: a folder by its manifest as it is now."""
    if isinstance(source, Package):
        return ("package", source.digest, str(source.folder))
    folder = Path(source)
    try:
        return (str(folder.absolute()), FileIdentity.of((folder / MANIFEST).stat()))
    except OSError:
        return (str(folder.absolute()),)  # which cannot be loaded


def _check_kind(package: Package, kind: AdapterKind) -> None:
    """Raises: InvalidArgumentError: a package of a model, or of another kind of adapter."""
    found = package.family.adapter if package.manifest.every_file else None
    if found is not kind:
        what = "a model" if found is None else EXPORT_OPTIONS[found][0]
        raise InvalidArgumentError(
            f"{package.folder} is the package of {what}, not of {EXPORT_OPTIONS[kind][0]}; "
            "'sdexport export-adapter' makes one"
        )
