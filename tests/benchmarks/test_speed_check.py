"""Processor time compared with an earlier commit, in turns, on a machine that may be busy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speed_check
from benchmarks.speed_check import (
    BOUND,
    NAMES,
    ROOT,
    SUSPICIOUS,
    Comparison,
    NotComparableError,
    Pair,
)

LOSS = 1.25
"""Seen on any machine; benchmarks/results/speed_check.json shows the same for 1.15."""


@pytest.fixture(scope="module")
def baseline() -> Iterator[Path]:
    try:
        with speed_check.baseline_tree() as tree:
            yield tree
    except NotComparableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pair(baseline: Path) -> Iterator[Pair]:
    with Pair(ROOT, baseline) as both:
        yield both


@pytest.mark.perf
@pytest.mark.parametrize("name", NAMES)
def test_is_not_slower_than_the_baseline(name: str, pair: Pair, baseline: Path) -> None:
    try:
        found = speed_check.compare(name, ROOT, baseline, first=pair)
    except NotComparableError as error:
        pytest.skip(f"{error}; renew benchmarks/baseline.json")
    assert found.passed, found


@pytest.mark.perf
@pytest.mark.parametrize("name", ["tokenizer, known words", "unet"])
def test_sees_a_loss(name: str, baseline: Path) -> None:
    found = speed_check.compare(name, ROOT, baseline, slower=LOSS)
    assert not found.passed, found


def test_most_attempts_decide() -> None:
    assert Comparison("a", (1.2, 1.0, 1.2, 1.0, BOUND), 1.0, 1.0).passed
    assert not Comparison("a", (1.2, 1.0, 1.2, BOUND, 1.1), 1.0, 1.0).passed


@pytest.mark.parametrize(
    ("ratios", "decided"),
    [
        ([], False),
        ([SUSPICIOUS], True),
        ([1.05], False),  # within the bound, but near it
        ([1.05, 1.0], False),
        ([1.05, 1.0, 1.0], True),
        ([1.2, 1.2, 1.0, 1.0], False),
        ([1.2, 1.2, 1.2], True),
    ],
)
def test_is_measured_until_three_attempts_agree(ratios: list[float], decided: bool) -> None:
    assert speed_check._decided(ratios) is decided


def test_worker_reports_calls_that_an_earlier_tree_lacks() -> None:
    with Pair(ROOT, ROOT) as both, pytest.raises(NotComparableError, match="baseline: KeyError"):
        both.ratio("no such call")


def test_worker_times_the_tree_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "sdexport").mkdir()
    (tmp_path / "sdexport" / "__init__.py").write_text("", encoding="ascii")
    with Pair(ROOT, tmp_path) as both, pytest.raises(NotComparableError, match="baseline: "):
        both.ratio("scheduler euler")


def test_baseline_is_a_commit_of_this_history() -> None:
    commit = json.loads(speed_check.BASELINE.read_text(encoding="ascii"))["commit"]
    command = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", commit, "HEAD"]
    if not (ROOT / ".git").exists():
        pytest.skip("no repository")
    assert subprocess.run(command).returncode == 0


def test_unknown_commit_is_named() -> None:
    expected = "no tree of 000000000000|git does not run"
    with (
        pytest.raises(NotComparableError, match=expected),
        speed_check.baseline_tree("0" * 40),
    ):
        pass


def test_evidence_has_unchanged_runs_and_slower_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(runs: int, slower: float, keep: Callable[[dict[str, Any]], None]) -> bool:
        keep({"runs": [slower] * runs})
        return True

    monkeypatch.setattr(speed_check, "run", run)
    speed_check.evidence(20, tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found == {
        "unchanged": {"runs": [1.0] * 20},
        "slower": {"runs": [speed_check.LOSS] * 5},
    }


def test_busy_processes_end() -> None:
    with speed_check.busy_processes(2) as processes:
        assert all(process.poll() is None for process in processes)
    assert all(process.poll() is not None for process in processes)
