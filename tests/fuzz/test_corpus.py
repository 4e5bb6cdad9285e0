"""Every kept input, and a few random ones, through its target; `make fuzz` tries many more."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from tests.fuzz.harness import Checker
from tests.fuzz.replay import CORPUS, findings, kept, mutations
from tests.fuzz.targets import NAMES, target

MOST_BYTES = 300_000
"""Of all kept inputs."""


@pytest.mark.skipif(sys.platform != "linux", reason="knows the files that Python reads on Linux")
@pytest.mark.parametrize("name", NAMES)
def test_target_holds_for_kept_and_random_inputs(name: str, tmp_path: Path) -> None:
    found_target = target(name)
    if found_target.needs:
        pytest.importorskip(found_target.needs)
    checker = Checker(found_target, tmp_path)
    inputs = itertools.chain(
        (path.read_bytes() for path in kept(name)),
        mutations(checker.target, checker.target.random_inputs),
    )
    found = findings(checker, inputs)
    assert not found, "\n".join(map(str, found.values()))


def test_kept_inputs_are_small_and_belong_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(NAMES)
    assert all(kept(name) for name in NAMES)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < MOST_BYTES


def test_random_inputs_are_the_same_each_time() -> None:
    found = target("scheduler_config")
    assert list(mutations(found, 20)) == list(mutations(found, 20))
    assert list(mutations(found, 20)) != list(mutations(found, 20, seed=1))
