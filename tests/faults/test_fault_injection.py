"""Every call that changes a file fails, or the process is killed in its place, once each.

Afterwards the old or the new is there, whole; what else is left cannot be loaded; and the same
action succeeds and leaves nothing behind.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.fault_server import KINDS, FaultServer, compiled_shim, sample
from tests.faults.scenarios import SCENARIOS

IN_CI = {"image a.png": 1, "engine": 1, "copy --force": 1}
"""Scenarios that run with each change, and how many calls of each name then fail."""
LARGE = {"export": 3, "export --force": 3, "build": 3}
"""Scenarios in which so many calls of each name fail; there are hundreds of them."""


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def inject(name: str, each: int | None, kinds: Sequence[str], folder: Path) -> Counter[str]:
    """Run a scenario with each fault; counts the faults by call and kind."""
    scenario, injected = SCENARIOS[name], Counter[str]()
    before, work = folder / "before", folder / "work"
    before.mkdir()
    scenario.prepare(before)
    with FaultServer(name, compiled_shim(folder), folder / "log") as server:

        def start_over() -> None:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(before, work)

        start_over()
        whole = server.run(work)
        assert not whole.error and not whole.killed, whole.error
        expected, final = files_in(work), scenario.state(work)
        numbers = range(1, len(whole.calls) + 1) if each is None else sample(whole.calls, each)
        for kind in kinds:
            for number in numbers:
                start_over()
                outcome = server.run(work, number, kind)
                what = f"{name}: {kind} at call {number} ({whole.calls[number - 1]}): {outcome}"
                assert not outcome.bug, what
                state = scenario.state(work)
                assert state in (final, *scenario.allowed), f"{what}: {state}"
                assert outcome.error or outcome.killed or state == final, what
                again = server.run(work)
                done = state == final and again.error.startswith("FileExistsError: ")
                assert done or not (again.error or again.killed), f"{what}; then {again.error}"
                assert scenario.state(work) == final, what
                assert files_in(work) == expected, what
                injected[f"{whole.calls[number - 1]} {kind}"] += 1
    return injected


@pytest.mark.parametrize("name", IN_CI)
def test_sample_of_faults(name: str, tmp_path: Path) -> None:
    assert inject(name, IN_CI[name], ("EIO", "KILL"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_fault(name: str, tmp_path: Path) -> None:
    injected = inject(name, LARGE.get(name), KINDS, tmp_path)
    print(name, sum(injected.values()), dict(injected))  # noqa: T201  with pytest -s
