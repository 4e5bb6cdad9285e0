"""Every call that changes a file fails, or the process is killed in its place, once each.

Afterwards the old or the new is there, whole; what else is left cannot be loaded; and the same
action succeeds and leaves nothing behind. `python -m benchmarks.faults` runs all of it and writes
the figures of docs/security.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fault_server import KINDS
from tests.faults.injection import inject
from tests.faults.scenarios import SCENARIOS

IN_CI = {"image a.png": 1, "engine": 1, "copy --force": 1}
"""Scenarios that run with each change, and how many calls of each name then fail."""


@pytest.mark.parametrize("name", IN_CI)
def test_sample_of_faults(name: str, tmp_path: Path) -> None:
    found = inject(name, IN_CI[name], ("EIO", "KILL"), tmp_path)
    assert found.faults["EIO"] == found.faults["KILL"] == found.chosen


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_fault(name: str, tmp_path: Path) -> None:
    assert inject(name, None, KINDS, tmp_path).chosen
