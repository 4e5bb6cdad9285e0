"""A graph that was prepared for this processor as a Session of ONNX Runtime."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.errors import EngineError
from sdexport.engines.messages import one_line
from sdexport.engines.ort.onnxruntime_session import (
    CPU,
    OnnxRuntimeBase,
    OnnxRuntimeSession,
    Provider,
    compute,
    load,
    session_options,
)
from sdexport.engines.ort.prepared import prepared_graph as prepared
from sdexport.engines.session import Feeds

_log = logging.getLogger(__name__)
_MAPPING = threading.Lock()
"""Held while a file is mapped, so that every session knows which mappings are its own."""


class PreparedSession(OnnxRuntimeBase):
    """A graph that was prepared for this processor; see prepared.prepared_graph.

    Args:
      plan: the prepared graph. sidecar: its own.
      own: opens the graph that it was made from, for sizes that the prepared one does not take.
      threads: see OnnxRuntimeSession.
    Raises: EngineError: it cannot be loaded.
    """

    def __init__(
        self,
        plan: Path,
        sidecar: Sidecar,
        own: Callable[[], OnnxRuntimeSession],
        *,
        threads: int | None,
    ) -> None:
        name = sidecar.component
        options = session_options(threads, "none", True)
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        session, self._ranges = _mapping(name, plan, options)
        super().__init__(session, name, sidecar.inputs, sidecar.outputs)
        self._own = own
        self._taken = [value.name for value in session.get_inputs()]
        self._input = prepared.given_before(sidecar)
        self._before: Any = None
        self._products: list[str] = []
        if self._input is not None:
            before = prepared.before_path(plan)
            self._before, self._ranges_before = _mapping(name, before, options)
            self._products = [value.name for value in self._before.get_outputs()]
        self._check_edges()
        self._mapped = sum(sidecar.files.values())
        self._held: tuple[np.ndarray, dict[str, np.ndarray]] | None = None
        self._multiples = prepared.multiples(sidecar)
        self._other: OnnxRuntimeSession | None = None
        self._lock = threading.Lock()

    @property
    def mapped(self) -> int:
        return self._mapped

    def trim(self, room: int | None = None) -> bool:
        with self._lock:
            if self._other is not None:
                self._other.close()
                self._other = None
        kept = self._opened(), self._before  # its mappings must not go meanwhile
        done = prepared.give_back(self._ranges, room)
        del kept
        return done

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        for name, multiple in self._multiples.items():
            if any(size % multiple for size in feeds[name].shape[2:]):
                return self._unprepared().run(feeds)
        if self._input is not None:
            feeds = {**feeds, **self._of_input(feeds[self._input])}
        return super()._compute({name: feeds[name] for name in self._taken})

    def _check_edges(self) -> None:
        """Raises: EngineError: the graph has other inputs or outputs than its sidecar says."""
        given = {spec.name for spec in self.inputs} | set(self._products)
        outputs = {value.name for value in self._session.get_outputs()}
        asked = {self._input} if self._input is not None else set()
        if not set(self._taken) | asked <= given or not set(self._output_names) <= outputs:
            raise EngineError(f"{self.name}: the prepared graph is not the one of its sidecar")

    def _of_input(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """What depends on one input alone, computed again only if that has changed."""
        held = self._held
        if held is None or not np.array_equal(held[0], value):
            before = self._before
            if before is None:
                self._check_open()
            made = compute(self.name, before, self._products, {str(self._input): value})
            prepared.give_back(self._ranges_before)
            self._held = held = value.copy(), made
        return held[1]

    def _unprepared(self) -> OnnxRuntimeSession:
        with self._lock:
            self._check_open()
            if self._other is None:
                _log.info("%s: the prepared graph does not take this size", self.name)
                self._other = self._own()
            return self._other

    def _release(self) -> None:
        super()._release()
        self._before = self._held = None
        with self._lock:
            if self._other is not None:
                self._other.close()


def open_onnxruntime(
    path: str | Path,
    *,
    providers: str | Sequence[Provider] = CPU,
    threads: int | None = None,
    optimization: str = "all",
    prepacking: bool = True,
    plan: str | Path | None = None,
    digest: str | None = None,
) -> OnnxRuntimeSession | PreparedSession:
    """An ONNX graph in ONNX Runtime, prepared for this processor if it is.

    What was prepared from another file, with another version or for another processor is not taken,
    with a warning; nor is it where providers, optimization or prepacking are given.

    Args:
      path, providers, threads, optimization, prepacking: see OnnxRuntimeSession.
      plan: the graph that `sdexport build` prepared; there may be none.
      digest: sidecar.model_digest of `path`, for comparison with what it was made from.
    Raises: see OnnxRuntimeSession.
    """
    providers = (providers,) if isinstance(providers, str) else tuple(providers)
    own = partial(
        OnnxRuntimeSession,
        path,
        providers=providers,
        threads=threads,
        optimization=optimization,
        prepacking=prepacking,
    )
    ordinary = (providers, optimization, prepacking) == (CPU, "all", True)
    if plan is None or not ordinary or not Path(plan).exists():
        return own()
    plan = Path(plan)
    try:
        sidecar = Sidecar.read(plan)
        found = prepared.differences(sidecar, digest=digest, version=ort.__version__)
        if not found:
            return PreparedSession(plan, sidecar, own, threads=threads)
    except (EngineError, FileNotFoundError) as error:
        found = [str(error)]
    _log.warning(
        "%s: its prepared graph is not used: %s; prepare it again: sdexport build PACKAGE "
        "--backend onnxruntime --component %s --rebuild-stale",
        plan.stem,
        "; ".join(found),
        plan.stem,
    )
    return own()


def _mapping(name: str, plan: Path, options: Any) -> tuple[Any, list[prepared.Range]]:
    """ONNX Runtime's session of a prepared graph, and where it has mapped the weights."""
    data = [prepared.data_path(plan)]
    with _MAPPING:
        there = prepared.mapped_ranges(data)
        session = load(name, plan, options, CPU)
        return session, sorted(prepared.mapped_ranges(data) - there)


@cache
def _share_arena() -> None:
    """One arena for all prepared graphs of this process, which grows by what is asked for."""
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
    except Exception as error:  # noqa: BLE001  there is one already, which serves as well
        _log.debug("no arena of our own: %s", one_line(error))
