"""The Session protocol: named tensors in, named tensors out, whatever runs the graph.

Errors: InvalidArgumentError if an argument does not fit, EngineError if the engine fails.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from sdexport.engines.closing import ClosesOnExit
from sdexport.engines.errors import EngineError, InvalidArgumentError
from sdexport.engines.run_record import note_run

Feeds = Mapping[str, np.ndarray]
"""Arrays by the name of their input."""
ANY_SIZE = "?"
"""A dynamic dimension without a name; two of them need not be equal."""
MAX_COUNT = 4096
"""Upper limit for numbers of threads and streams."""


def check_count(name: str, value: object) -> None:
    """Check a number of threads or streams.

    Raises: InvalidArgumentError: not a whole number from 1 to MAX_COUNT.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise InvalidArgumentError(
            f"{name} must be a whole number from 1 to {MAX_COUNT}, got {value!r:.40}"
        )


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `shape` holds sizes, and names where a dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """From its JSON object; KeyError or TypeError if it has another form."""
        return cls(str(entry["name"]), str(entry["dtype"]), tuple(entry["shape"]))

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class GraphSource:
    """The file that a session runs.

    path: None if it runs no file. form: "" for the ONNX file itself, or what was built from it:
    "prepared" or "plan".
    unused: why another file that was built for the graph is not run; "" if there is no such file.
    """

    path: Path | None = None
    form: str = ""
    unused: str = ""


NO_FILE = GraphSource()


def named_sizes(
    specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """The size of each named dimension.

    Args:
      shapes: of the arrays, by input.
    """
    return {
        dimension: size
        for spec in specs
        for dimension, size in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(dimension, str)
    }


class Session(Protocol):
    """An opened graph. Safe to call from several threads; the caller owns the outputs."""

    @property
    def name(self) -> str:
        """Name of the component, for messages."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def refits(self) -> int:
        """How often the weights were replaced; outputs from before a refit are out of date."""
        ...

    @property
    def mapped(self) -> int | None:
        """Bytes of the memory-mapped files that it reads, where those are most of its memory."""
        ...

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Compute all outputs.

        Args:
          feeds: one array for each input, of its dtype and shape; equal dimension names mean
            equal sizes.
        Returns: one array for each output.
        Raises: InvalidArgumentError: feeds do not fit. EngineError: the engine failed or is closed.
        """
        ...

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        """Return a session with these inputs fixed; its `run` takes only the others.

        The constants are copied, checked and (on a GPU) uploaded once. A backend may also compute
        once what depends only on them. Closing the returned session frees them and leaves this
        session open.

        Args:
          shared: inputs that are the same for both halves of the batch. `run` takes them with half
            of the rows, and a backend may then compute once what both halves have in common. Only
            for graphs in which no row depends on another.
          constants: one array for each fixed input, with all rows of the batch.
        Raises: InvalidArgumentError: an array does not fit its input, or there is no such input.
        """
        ...

    def expect(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        constants: Collection[str] = (),
        shared: Collection[str] = (),
    ) -> None:
        """Get ready for a first call, which then begins at once; a backend may do nothing.

        Args:
          shapes: of its arrays, by input, for all rows of the batch.
          constants, shared: names of inputs that will be bound, see `bind`.
        Raises: EngineError: the engine failed.
        """
        ...

    def source(self, feeds: Feeds) -> GraphSource:
        """The file that `run` executes for these feeds; the session may have several.

        Raises: InvalidArgumentError: it takes no inputs of these sizes.
        """
        ...

    def nearest_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The nearest sizes of named dimensions that the file which was built for the graph takes.

        Returns: `sizes` themselves if it takes all, or if none was built.
        """
        ...

    def trim(self, room: int | None = None) -> bool:
        """Free memory that can be filled again on demand; the session stays open.

        Args:
          room: bytes that are needed; None frees as much as possible.
        Returns: False if nothing can be freed, or much more by closing the session.
        """
        ...

    def close(self) -> None:
        """Free the engine; closing twice is allowed."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class SessionBase(ClosesOnExit):
    """Shared code of all sessions; a subclass defines `_compute` and `_release`."""

    def __init__(
        self, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._refits = 0
        self._closed = False
        self._source = NO_FILE

    @property
    def refits(self) -> int:
        return self._refits

    @property
    def mapped(self) -> int | None:
        return None

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        check_feeds(self.name, self.inputs, feeds)
        note_run(self.name, self._source.form)
        return self._compute(feeds)

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return BoundSession(self, constants, shared)

    def expect(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        constants: Collection[str] = (),
        shared: Collection[str] = (),
    ) -> None:
        pass

    def source(self, feeds: Feeds) -> GraphSource:
        return self._source

    def nearest_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return dict(sizes)

    def trim(self, room: int | None = None) -> bool:
        return False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self.name}: the session is closed; open it again to run it")

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """All outputs for feeds that have been checked."""
        raise TypeError(f"{type(self).__name__} must define _compute")

    def _release(self) -> None:
        """Free the resources of the subclass; called once."""


class WrappedSession(SessionBase):
    """A session that runs another one with other inputs; closing it leaves that one open.

    Args:
      inputs: of this session; the outputs are those of the other one.
    """

    def __init__(self, parent: Session, inputs: Sequence[TensorSpec]) -> None:
        super().__init__(parent.name, inputs, parent.outputs)
        self._parent = parent

    @property
    def refits(self) -> int:
        return self._parent.refits

    @property
    def mapped(self) -> int | None:
        return self._parent.mapped

    def source(self, feeds: Feeds) -> GraphSource:
        known = {spec.name for spec in self._parent.inputs}
        return self._parent.source({k: v for k, v in feeds.items() if k in known})

    def nearest_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self._parent.nearest_sizes(sizes)

    def trim(self, room: int | None = None) -> bool:
        return self._parent.trim(room)


class BoundSession(WrappedSession):
    """A session with some of its inputs fixed; see Session.bind."""

    def __init__(self, parent: SessionBase, constants: Feeds, shared: Sequence[str] = ()) -> None:
        known = {spec.name: spec for spec in parent.inputs}
        copies = {name: np.array(value) for name, value in constants.items()}
        check_feeds(parent.name, [known[n] for n in copies if n in known], copies, known)
        rest = {name: spec for name, spec in known.items() if name not in copies}
        for name in shared:
            if name not in rest:
                raise InvalidArgumentError(
                    f"{parent.name}: no input '{name}' to share between the halves of the batch"
                )
            rest[name] = _halved(rest[name])
        super().__init__(parent, tuple(rest.values()))
        self._source = parent._source
        self._constants: Feeds = copies
        self._shared = frozenset(shared)

    def source(self, feeds: Feeds) -> GraphSource:
        return self._parent.source(self._all_feeds(feeds))

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._parent.run(self._all_feeds(feeds))

    def _all_feeds(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The parent's feeds: the constants too, and shared inputs for both halves."""
        repeated = {name: np.concatenate([feeds[name], feeds[name]]) for name in self._shared}
        return {**self._constants, **feeds, **repeated}

    def _checked_feeds(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The parent's feeds, for subclasses that compute without its `run`.

        Raises: InvalidArgumentError: the constants and the feeds do not fit together.
        """
        everything = self._all_feeds(feeds)
        check_feeds(self.name, self._parent.inputs, everything)
        return everything

    def _release(self) -> None:
        self._constants = {}


def _halved(spec: TensorSpec) -> TensorSpec:
    """An input of which half of the rows are given; other inputs still have all of them."""
    rows, *others = spec.shape
    return spec if isinstance(rows, int) else replace(spec, shape=(f"half of {rows}", *others))


def check_feeds(
    name: str,
    specs: Sequence[TensorSpec],
    feeds: Feeds,
    known: Mapping[str, TensorSpec] | None = None,
) -> None:
    """Check that `feeds` holds exactly the arrays that `specs` describes.

    Args:
      name: the component, for the message.
      known: inputs that the message about an unknown name lists; default those of `specs`.
    Raises: InvalidArgumentError: an array is missing, unknown, or of the wrong dtype or shape.
    """
    expected = {spec.name: spec for spec in specs}
    if feeds.keys() != expected.keys():
        raise InvalidArgumentError(_wrong_names(name, expected, feeds, known or expected))
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        value = feeds[spec.name]
        if (
            not isinstance(value, np.ndarray)
            or value.dtype != spec.dtype
            or value.ndim != len(spec.shape)
        ):
            raise _unfit(name, spec, value)
        for dimension, size in zip(spec.shape, value.shape, strict=True):
            if isinstance(dimension, int):
                if dimension != size:
                    raise _unfit(name, spec, value)
            elif not size and "." not in dimension:  # the rank of a layer's factors may be 0
                raise InvalidArgumentError(
                    f"{name}: input '{spec.name}': empty array {value.shape}"
                )
            elif dimension != ANY_SIZE:
                first, source = sizes.setdefault(dimension, (size, spec.name))
                if first != size:
                    raise InvalidArgumentError(
                        f"{name}: '{dimension}' is {first} in input '{source}' "
                        f"and {size} in input '{spec.name}'; they must be equal"
                    )


def _unfit(name: str, spec: TensorSpec, value: object) -> InvalidArgumentError:
    """The error for what is not an array of the dtype and shape of its input."""
    where = f"{name}: input '{spec.name}': expected"
    if not isinstance(value, np.ndarray):
        return InvalidArgumentError(f"{where} a NumPy array {spec}, got {type(value).__name__}")
    return InvalidArgumentError(f"{where} {spec}, got {value.dtype} {value.shape}")


def _wrong_names(
    name: str, expected: Mapping[str, TensorSpec], feeds: Feeds, known: Mapping[str, TensorSpec]
) -> str:
    problems = [f"missing input '{n}' {spec}" for n, spec in expected.items() if n not in feeds]
    problems += [f"no input '{n}'" for n in feeds if n not in expected]
    return f"{name}: {'; '.join(problems)}; the inputs are {', '.join(known)}"
