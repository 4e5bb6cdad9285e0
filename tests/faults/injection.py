"""Running a scenario once for each fault, and checking what is there after each of them."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.faults.fault_server import OF_DATA, WRITES, FaultServer, Outcome, compiled_shim, sample
from tests.faults.scenario import Scenario
from tests.faults.scenarios import SCENARIOS

_TRIES = 5
"""To reach the last calls of a run whose number of calls varies."""


@dataclass
class Injected:
    """The faults of one scenario, all of which left what they may leave.

    calls: how many of each name a run makes. faults: by kind. failed: by name of the call.
    ends: of the runs with a fault, error, killed or success. states: what was there then.
    """

    scenario: str
    calls: dict[str, int]
    chosen: int
    faults: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        counted = ("faults", "failed", "ends", "states")
        return cls(**{k: Counter(v) if k in counted else v for k, v in values.items()})

    def to_dict(self) -> dict[str, Any]:
        fields = vars(self)
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in fields.items()}


def inject(
    name: str,
    each: int | None,
    kinds: Sequence[str],
    folder: Path,
    progress: Callable[[Injected], object] = lambda found: None,
    earlier: Injected | None = None,
) -> Injected:
    """Run a scenario with each fault.

    Args:
      each: how many calls of each name fail; None: all.
      kinds: of faults, see tests.faults.fault_server.KINDS.
      folder: an empty one.
      earlier: the beginning of the same faults, which are not injected again.
    Raises: AssertionError: after a fault something else is there than the old or the new; or the
      same action does not succeed then, or leaves something behind.
    """
    started = time.perf_counter()
    before = folder / "before"
    before.mkdir()
    SCENARIOS[name].prepare(before)
    with FaultServer(name, compiled_shim(folder), folder / "log") as server:
        runs = _Runs(name, server, before, folder / "work")
        calls = runs.whole.calls
        numbers = range(1, len(calls) + 1) if each is None else sample(calls, each)
        found = Injected(name, dict(Counter(calls).most_common()), len(numbers))
        if earlier is not None and earlier.calls.keys() == found.calls.keys():
            found, started = earlier, started - earlier.seconds
        for kind in kinds:
            of_kind = [n for n in numbers if kind not in OF_DATA or calls[n - 1] in WRITES]
            for number in of_kind[found.faults[kind] :]:
                _count(found, kind, *runs.run(kind, number))
                found.seconds = time.perf_counter() - started
                progress(found)
    return found


def _count(found: Injected, kind: str, call: str, end: str, state: str) -> None:
    found.faults[kind] += 1
    found.failed[call] += 1
    found.ends[end] += 1
    found.states[state] += 1


class _Runs:
    """Runs of one scenario with a fault each, in a folder that is the same before each.

    Where a fault leaves the folder exactly as it was, the same action from the same folder is the
    run without a fault, which was done: neither is repeated.

    whole: the run without a fault.
    """

    def __init__(self, name: str, server: FaultServer, before: Path, work: Path) -> None:
        self._name, self._server, self._before, self._work = name, server, before, work
        self._scenario: Scenario = SCENARIOS[name]
        self._start_over()
        self._initial = self._state()
        self.whole: Outcome = server.run(work)
        assert not self.whole.error and not self.whole.killed, self.whole.error
        self._expected, self._final = _files_in(work), self._state()
        self._start_over()

    def _start_over(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self._before, self._work)
        self._found = _identities(self._work)

    def _state(self) -> str:
        return self._scenario.state(self._work)

    def run(self, kind: str, number: int) -> tuple[str, str, str]:
        """Returns: the name of the call that failed, how the run ended, and the state then.

        Where threads write, a run makes a few calls more or fewer than the one without a fault.
        """
        outcome = self._server.run(self._work, number, kind)
        for _ in range(_TRIES):
            if len(outcome.calls) >= number:
                break
            number = len(outcome.calls)
            self._start_over()
            outcome = self._server.run(self._work, number, kind)
        assert len(outcome.calls) >= number, f"{self._name}: no call {number}, {outcome}"
        call = outcome.calls[number - 1]  # their order varies where threads write
        what = f"{self._name}: {kind} at call {number} ({call}): {outcome}"
        assert not outcome.bug, what
        untouched = _identities(self._work) == self._found
        state = self._initial if untouched else self._state()
        assert state in (self._final, *self._scenario.allowed), f"{what}: {state}"
        assert outcome.error or outcome.killed or state == self._final, what
        if not untouched:
            self._repeat(what, done=state == self._final)
            self._start_over()
        end = "killed" if outcome.killed else "error" if outcome.error else "success"
        return call, end, state

    def _repeat(self, what: str, *, done: bool) -> None:
        """The same action again, which succeeds unless the new is there already."""
        again = self._server.run(self._work)
        is_there = done and again.error.startswith("FileExistsError: ")
        assert is_there or not (again.error or again.killed), f"{what}; then {again.error}"
        assert self._state() == self._final, what
        assert _files_in(self._work) == self._expected, what


def _identities(folder: Path) -> dict[str, tuple[int, ...]]:
    """Each path in a folder with what changes if anything about it does, contents included."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        key = status.st_ino, status.st_mode
        if not path.is_dir():
            key += status.st_size, status.st_mtime_ns, status.st_ctime_ns
        found[path.relative_to(folder).as_posix()] = key
    return found


def _files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
