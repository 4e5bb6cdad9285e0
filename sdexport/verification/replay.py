"""Running the graphs of a package as a pipeline does, on inputs whose outputs are known.

A pipeline does not always run the package's own graph as it was recorded: there may be a prepared
graph or an engine, a backend compiles for the shapes of the first call, and the denoising loop
binds inputs. Each of these is run here. At sizes for which no reference output was recorded, the
outputs are compared with those of the package's own graph, which is compared with the reference at
the recorded sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines import PLAN_BACKENDS, EngineError, Session
from sdexport.engines.closing import ClosesOnExit
from sdexport.engines.errors import InvalidArgumentError, MissingDependencyError
from sdexport.engines.session import (
    NO_FILE,
    Feeds,
    GraphSource,
    TensorSpec,
    check_feeds,
    named_sizes,
)
from sdexport.runtime.component_backends import Backends, BackendSpec, backend_of
from sdexport.runtime.component_engines import open_component
from sdexport.runtime.component_sessions import ComponentSessions
from sdexport.runtime.expected_calls import SHARED_INPUTS, is_step_input, level_sizes
from sdexport.runtime.images import vae
from sdexport.runtime.models.components import STEP_ROLES, Role
from sdexport.runtime.packages.package import Package
from sdexport.runtime.pipeline import Pipeline
from sdexport.verification.comparison import FAILURES
from sdexport.verification.open_package import OpenPackage

LARGEST_SIDE = 256
"""Largest width and height of a reference image, in pixels."""
COMPILES_FOR_SHAPES = ("openvino",)
"""Backends whose sessions compile for the shapes and the bound inputs of the first call: each way
to run a graph needs a session of its own here, as it has in a pipeline."""
PLAIN: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("onnxruntime", {"optimization": "none", "prepacking": False}),
    ("openvino", {"static": False, "rewrite": False}),
)
"""Backends that run a package's own graph as it is in the file, with their options; the first one
that is installed and has kernels for the graph is taken."""
RUN, BOUND, SHARED, TILED = "", "bound inputs", "bound and shared inputs", "tiles"
"""The ways to run a graph."""


@dataclass(frozen=True)
class Reference:
    """Inputs and outputs of a graph that PyTorch recorded."""

    inputs: Feeds
    outputs: Feeds


@dataclass(frozen=True)
class Replay:
    """A graph that was run, next to what is expected.

    way: one of RUN, BOUND, SHARED and TILED. inputs: their sizes.
    backend: that ran it, with all options of its session. source: the file that it ran.
    compared_with: "" for the reference outputs, else where the expected outputs come from.
    expected, actual: outputs by name. error: why there are none.
    """

    graph: str
    way: str
    inputs: str
    backend: BackendSpec
    source: GraphSource = NO_FILE
    compared_with: str = ""
    expected: Feeds = field(default_factory=dict, repr=False)
    actual: Feeds = field(default_factory=dict, repr=False)
    error: str = ""


class GraphReplayer(ClosesOnExit):
    """Runs the graphs of a package; a context manager.

    Args:
      pipeline: that generates the image too.
      backends, options: how it opens graphs; `options` are those of the backends' sessions.
      low_memory, vae_tile: of the pipeline that is verified.
    Attributes:
      not_checked: what could not be run, and why.
      files: every file that was run.
    """

    def __init__(
        self,
        pipeline: OpenPackage,
        backends: Backends,
        options: Mapping[str, Any],
        *,
        low_memory: bool = False,
        vae_tile: int | None = None,
    ) -> None:
        self._pipeline, self._package = pipeline, pipeline.package
        self._backends, self._options = backends, dict(options)
        self._low_memory, self._tile = low_memory, vae_tile
        self._alone = self._new_sessions()
        self.not_checked: list[str] = []
        self.files: set[Path] = set()

    def replays(self, graph: str, reference: Reference) -> Iterator[Replay]:
        """Run a graph in every way in which a pipeline may run it.

        Raises: MissingDependencyError: its backend is not installed.
        """
        try:
            backend = self._pipeline.opened_with(graph)
        except MissingDependencyError as error:
            if "." not in graph or backend_of(self._backends, graph).name not in PLAN_BACKENDS:
                raise
            self.not_checked.append(f"{graph}: it has no engine, and {error}")
            return
        failed = False
        for replays in (self._recorded, self._usual):
            for replay in () if failed else replays(graph, reference):
                failed = failed or bool(replay.error)
                if replay.source.path is not None:
                    self.files.add(replay.source.path)
                yield replace(replay, graph=graph, backend=backend)
        self._rest(graph)

    def _rest(self, graph: str) -> None:
        """Free mapped weights of a text encoder: the next graph is another component's."""
        role = self._package.family.component(graph.partition(".")[0]).role
        if role is Role.TEXT_ENCODER and isinstance(self._pipeline, Pipeline):
            self._pipeline.rest_text_encoders()

    def _recorded(self, graph: str, reference: Reference) -> Iterator[Replay]:
        """Run it on the recorded inputs; if it fails in one way, not in the others."""
        ways = self._ways(graph, reference.inputs)
        for way, session in self._sessions(graph, ways):
            if way == RUN and not self._takes(session, graph, reference.inputs):
                return
            replay = _run(session, way, reference.inputs)
            yield replace(replay, expected=reference.outputs)
            if replay.error:
                return

    def _takes(self, session: Session, graph: str, inputs: Feeds) -> bool:
        """Whether an engine takes the sizes of the recorded inputs; a mistake in them is not it."""
        try:
            check_feeds(graph, session.inputs, inputs)
            session.source(inputs)
        except InvalidArgumentError as error:
            sizes = _sizes_or_none(session.inputs, inputs)
            if sizes is None or session.nearest_sizes(sizes) == sizes:
                return True  # running it shows the error
            self.not_checked.append(f"{graph} on its reference inputs: {error}")
            return False
        return True

    def _usual(self, graph: str, reference: Reference) -> Iterator[Replay]:
        """Run it at the size of the reference image, if what runs there is something else."""
        with self._session(graph, last=True) as session:
            specs = session.inputs
            recorded = _sizes_or_none(specs, reference.inputs)
            if recorded is None:
                return  # which the replay of the recorded inputs has shown
            is_built = session.nearest_sizes(recorded) != recorded
            usual = session.nearest_sizes(recorded | self._usual_sizes(graph, recorded))
            if is_built:  # its own graph, which it has opened for the recorded sizes, is not needed
                session.trim()
        feeds = {spec.name: _resized(reference.inputs[spec.name], spec, usual) for spec in specs}
        ways = self._ways(graph, feeds)
        if not is_built:
            ways = ways[-1:] if self._compiles(graph) and usual != recorded else ()
        if ways:
            yield from self._next_to_plain(graph, ways, feeds)
        if self._tile and self._package.family.component(graph.partition(".")[0]).role in _VAE:
            yield from self._next_to_plain(graph, (TILED,), feeds)

    def _next_to_plain(self, graph: str, ways: Sequence[str], feeds: Feeds) -> Iterator[Replay]:
        """Run a graph in each way, and the package's own graph plainly."""
        tiled = TILED in ways
        call = self._tiles_of(graph, feeds) if tiled else lambda session: session.run(feeds)
        self.make_room()
        try:
            expected, where = self._plain(graph, call)
        except (EngineError, MissingDependencyError) as error:
            self.not_checked.append(f"{graph} at {shown_sizes(feeds)}: {error}")
            return
        for way, session in self._sessions(graph, ways, last=not tiled):
            replay = _run(session, way, feeds, call if tiled else None)
            yield replace(replay, expected=expected, compared_with=where)

    def _plain(self, graph: str, call: Callable[[Session], Feeds]) -> tuple[Feeds, str]:
        """What the package's own graph computes, and where.

        Raises: EngineError, MissingDependencyError: no backend can run it.
        """
        problems: list[EngineError | MissingDependencyError] = []
        threads = {k: v for k, v in self._options.items() if k == "threads"}
        for backend, options in PLAIN:
            try:
                with open_component(
                    self._package, graph, backend, **{**options, **threads}
                ) as session:
                    where = self._package.model_path(graph).relative_to(self._package.folder)
                    return call(session), f"{where.as_posix()} in {backend}"
            except (EngineError, MissingDependencyError) as error:
                problems.append(error)
        raise problems[0]

    def _tiles_of(self, graph: str, feeds: Feeds) -> Callable[[Session], Feeds]:
        unit = self._package.manifest.downscale
        (value,), tile = feeds.values(), self._tile or 0
        if graph == self._package.family.vae_decoder:
            return lambda session: {"sample": vae.decode(session, value, tile=tile // unit)}
        return lambda session: {
            "latent_parameters": vae.encode(session, value, tile=tile, downscale=unit)
        }

    def _ways(self, graph: str, feeds: Feeds) -> tuple[str, ...]:
        """How a pipeline may run a graph, the usual way last."""
        family = self._package.family
        if not self._runs_in_steps(graph):
            return (RUN,)
        guided = not family.guidance_embedding
        rows = {len(feeds[name]) for name in SHARED_INPUTS if name in feeds}
        return (RUN, BOUND, SHARED) if guided and rows == {2} else (RUN, BOUND)

    def _usual_sizes(self, graph: str, recorded: Mapping[str, int]) -> dict[str, int]:
        """The sizes of dimensions in a call that generates the reference image."""
        family, unit = self._package.family, self._package.manifest.downscale
        height, width = reference_size(self._package)
        if "height" not in recorded and "image_height" not in recorded:
            return {}
        guided = self._runs_in_steps(graph) and not family.guidance_embedding
        sizes = {
            "batch": 2 if guided else 1,
            "height": height // unit,
            "width": width // unit,
            "image_height": height,
            "image_width": width,
            **level_sizes(height // unit, width // unit),
        }
        return {name: size for name, size in sizes.items() if name in recorded}

    def _runs_in_steps(self, graph: str) -> bool:
        return self._package.family.component(graph.partition(".")[0]).role in STEP_ROLES

    def _compiles(self, graph: str) -> bool:
        return self._pipeline.opened_with(graph).name in COMPILES_FOR_SHAPES

    def _sessions(
        self, graph: str, ways: Sequence[str], *, last: bool = False
    ) -> Iterator[tuple[str, Session]]:
        """Each way with a session for it; low-memory sessions are the same for all ways."""
        groups = [[way] for way in ways] if not self._low_memory else [ways]
        for group in groups:
            with self._session(graph, last=last and group is groups[-1]) as session:
                for way in group:
                    yield way, session

    @contextmanager
    def _session(self, graph: str, *, last: bool = False) -> Iterator[Session]:
        """An open session of a graph.

        Args:
          last: the image is generated next, so the session may be that of the pipeline.
        """
        if self._low_memory:
            if self._compiles(graph):
                self.make_room()
            yield self._alone[graph]
        elif last or not self._compiles(graph):
            yield self._pipeline.session(graph)
        else:
            with closing(self._new_sessions()) as own:
                yield own[graph]

    def _new_sessions(self) -> ComponentSessions:
        return ComponentSessions(
            self._package, self._backends, self._options, {}, low_memory=self._low_memory
        )

    def make_room(self) -> None:
        """With low memory, close what is open: a graph is opened elsewhere."""
        if self._low_memory:
            self._alone.make_room()

    def close(self) -> None:
        """Close every session that the pipeline does not close; closing twice is allowed."""
        self._alone.close()


_VAE = (Role.VAE_DECODER, Role.VAE_ENCODER)


def _run(
    session: Session,
    way: str,
    feeds: Feeds,
    call: Callable[[Session], Feeds] | None = None,
) -> Replay:
    """Run a session once; an error becomes part of the replay."""
    replay = Replay(session.name, way, shown_sizes(feeds), BackendSpec(""))
    try:
        if call is not None:
            outputs = call(session)
        elif way == RUN:
            outputs = session.run(feeds)
        else:
            outputs = _run_bound(session, feeds, shared=SHARED_INPUTS if way == SHARED else ())
        return replace(replay, actual=outputs, source=session.source(feeds))
    except FAILURES as error:
        return replace(replay, error=str(error))


def _run_bound(session: Session, feeds: Feeds, *, shared: Sequence[str]) -> dict[str, np.ndarray]:
    """Run with bound inputs as the denoising loop does; outputs for all rows of `feeds`.

    With shared inputs, one call takes those of the first half of the batch, and one those of the
    second. Of each, the half of the output counts whose rows are those of `feeds`.
    """
    constants = {name: value for name, value in feeds.items() if not is_step_input(name)}
    each_step = {name: value for name, value in feeds.items() if is_step_input(name)}
    with session.bind(shared=shared, **constants) as bound:
        if not shared:
            return bound.run(each_step)
        half = len(feeds[shared[0]]) // 2
        found: dict[str, list[np.ndarray]] = {}
        for rows in (slice(half), slice(half, None)):
            halves = {name: each_step[name][rows] for name in shared}
            for name, value in bound.run({**each_step, **halves}).items():
                found.setdefault(name, []).append(value[rows])
    return {name: np.concatenate(values) for name, values in found.items()}


def _sizes_or_none(specs: Sequence[TensorSpec], feeds: Feeds) -> dict[str, int] | None:
    """The sizes of named dimensions; None if the arrays do not have the dimensions of the specs."""
    ranks = {name: value.ndim for name, value in feeds.items()}
    if ranks != {spec.name: len(spec.shape) for spec in specs}:
        return None
    return named_sizes(specs, {name: value.shape for name, value in feeds.items()})


def _resized(value: np.ndarray, spec: TensorSpec, sizes: Mapping[str, int]) -> np.ndarray:
    """The array with other sizes of its named dimensions: cut off, or repeated."""
    for axis, dimension in enumerate(spec.shape):
        if isinstance(dimension, str) and dimension in sizes:
            value = np.take(value, np.arange(sizes[dimension]) % value.shape[axis], axis)
    return np.ascontiguousarray(value)


def reference_size(package: Package) -> tuple[int, int]:
    """(height, width) in pixels of the reference image."""
    height, width = package.manifest.default_size
    return min(height, LARGEST_SIDE), min(width, LARGEST_SIDE)


def shown_sizes(feeds: Feeds) -> str:
    """The sizes of the first input, and the length of the text."""
    first = next(iter(feeds.values()), np.empty(0))
    text = feeds.get("encoder_hidden_states")
    tokens = "" if text is None or text.ndim != 3 else f", {text.shape[1]} tokens"
    return "x".join(map(str, first.shape)) + tokens
