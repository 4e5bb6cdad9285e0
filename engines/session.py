"""The Session protocol: named tensors in, named tensors out, whatever runs the graph.

Errors: EngineError if the engine fails, InvalidArgumentError if feeds do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from sdexport.engines.errors import EngineError

Feeds = Mapping[str, np.ndarray]
ANY_SIZE = "?"
"""A dynamic dimension without a name; two of them need not be equal."""


MAX_COUNT = 4096
"""Most threads or streams to ask for; libraries fail on huge numbers each in its own way."""


def check_count(name: str, value: object) -> None:
    """A number of threads or streams.

    Raises: ValueError: not a whole number from 1 to MAX_COUNT.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise ValueError(f"{name} must be a whole number from 1 to {MAX_COUNT}, got {value!r:.40}")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `shape` holds sizes, and names where a dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


class Session(Protocol):
    """An opened graph. Safe to call from several threads; outputs belong to the caller."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Compute every output.

        Args:
          feeds: one array for each input, of its dtype and shape; equal dimension names mean
            equal sizes.
        Raises: ValueError: feeds do not fit. EngineError: the engine failed or is closed.
        """
        ...

    def bind(self, *, twice: Sequence[str] = (), **constants: np.ndarray) -> Session:
        """Return a session that holds these inputs and asks only for the others.

        The constants are copied, checked and (on devices) uploaded once; what depends on them alone
        may be computed once. Closing the returned session lets go of them and leaves this one open.

        Args:
          twice: inputs to be given with half of the rows, which stand for both halves of the batch;
            a session may then compute once what is the same for both. Only for graphs in which no
            row depends on another.
        Raises: ValueError: a constant does not fit its input, or there is no such input.
        """
        ...

    def close(self) -> None:
        """Let go of the engine; closing twice is allowed."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class SessionBase:
    """What every session does alike; a subclass gives `_compute` and `_release`."""

    refits = 0
    """How often the weights were replaced: answers from before are those of others."""

    def __init__(
        self, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._closed = False

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        check_feeds(self.name, self.inputs, feeds)
        return self._compute(feeds)

    def bind(self, *, twice: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return BoundSession(self, constants, twice)

    @property
    def mapped(self) -> int | None:
        """Bytes of files that are in memory at work, where that is most of what it needs."""
        return None

    def trim(self, room: int | None = None) -> bool:
        """Give back memory that is filled again when it is needed, and stay open.

        Args:
          room: bytes that suffice; None for all there is.
        Returns: whether that was done; if not, only closing gives something back.
        """
        return False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self.name}: the session is closed; open it again to run it")

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        raise TypeError(f"{type(self).__name__} must define _compute")

    def _release(self) -> None:
        """Free what the subclass holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class BoundSession(SessionBase):
    """A session with some of its inputs held; see Session.bind."""

    def __init__(self, parent: SessionBase, constants: Feeds, twice: Sequence[str] = ()) -> None:
        known = {spec.name: spec for spec in parent.inputs}
        held = {name: np.array(value) for name, value in constants.items()}
        check_feeds(parent.name, [known[n] for n in held if n in known], held, known)
        rest = {name: spec for name, spec in known.items() if name not in held}
        for name in twice:
            if name not in rest:
                raise ValueError(f"{parent.name}: no input '{name}' to give once for two halves")
        super().__init__(parent.name, tuple(rest.values()), parent.outputs)
        self._parent = parent
        self._held = held
        self._twice = frozenset(twice)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._parent.run(self._whole(feeds))

    def _whole(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The parent's feeds."""
        repeated = {name: np.concatenate([feeds[name], feeds[name]]) for name in self._twice}
        return {**self._held, **feeds, **repeated}

    def _checked(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The parent's feeds, for subclasses that compute without its `run`.

        Raises: ValueError: what is held and what is given do not fit together.
        """
        whole = self._whole(feeds)
        check_feeds(self.name, self._parent.inputs, whole)
        return whole

    def _release(self) -> None:
        self._held = {}


def check_feeds(
    name: str,
    specs: Sequence[TensorSpec],
    feeds: Feeds,
    known: Mapping[str, TensorSpec] | None = None,
) -> None:
    """Raise ValueError unless `feeds` holds exactly the arrays that `specs` ask for.

    Args:
      name: the component, for the message.
      known: the names that are listed when an unknown one comes; default those of `specs`.
    """
    wanted = {spec.name: spec for spec in specs}
    if feeds.keys() != wanted.keys():
        _complain_of_names(name, wanted, feeds, known or wanted)
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        value = feeds[spec.name]
        if not isinstance(value, np.ndarray):
            raise ValueError(
                f"{name}: input '{spec.name}': expected a NumPy array {spec}, "
                f"got {type(value).__name__}"
            )
        fits = value.dtype == spec.dtype and value.ndim == len(spec.shape)
        if not fits or any(
            isinstance(want, int) and want != got
            for want, got in zip(spec.shape, value.shape, strict=True)
        ):
            raise ValueError(
                f"{name}: input '{spec.name}': expected {spec}, got {value.dtype} {value.shape}"
            )
        for want, got in zip(spec.shape, value.shape, strict=True):
            if got == 0:
                raise ValueError(f"{name}: input '{spec.name}': empty array {value.shape}")
            if isinstance(want, str) and want != ANY_SIZE:
                first, source = sizes.setdefault(want, (got, spec.name))
                if first != got:
                    raise ValueError(
                        f"{name}: '{want}' is {first} in input '{source}' "
                        f"and {got} in input '{spec.name}'; they must be equal"
                    )


def _complain_of_names(
    name: str, wanted: Mapping[str, TensorSpec], feeds: Feeds, known: Mapping[str, TensorSpec]
) -> None:
    problems = [f"missing input '{n}' {spec}" for n, spec in wanted.items() if n not in feeds]
    problems += [f"no input '{n}'" for n in feeds if n not in wanted]
    raise ValueError(f"{name}: {'; '.join(problems)}; the inputs are {', '.join(known)}")
