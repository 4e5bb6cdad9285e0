"""Which graphs ran as a file that was built from them, while something is computed.

A session that was opened for a built file may run the original graph for some sizes, and a file
that cannot be used is replaced by the original when it is opened. So only the runs themselves tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_names: ContextVar[set[str] | None] = ContextVar("names", default=None)


@contextmanager
def recorded_runs() -> Iterator[set[str]]:
    """Collect the names of sessions that run a built file in this block, in this thread.

    A block inside of another one has a record of its own.
    """
    names: set[str] = set()
    token = _names.set(names)
    try:
        yield names
    finally:
        _names.reset(token)


def note_run(name: str, form: str) -> None:
    """Note a run, if it is recorded.

    Args:
      name: of the session. form: of what it runs: GraphSource.form.
    """
    if form:
        note_runs((name,))


def note_runs(names: Iterable[str]) -> None:
    """Note what an earlier block recorded, whose outputs are used again."""
    record = _names.get()
    if record is not None:
        record.update(names)
