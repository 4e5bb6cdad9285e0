"""Reading files when memory runs out: MemoryError, never a crash, a hang or another result."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.scarce_memory import MEMORY, NOT_OURS, READERS, SAME, Reader, prepare

IN_ROW = (1, 20)
"""How many allocations fail one after the other. If all do, Python itself may not end: it needs
memory to enter a `finally`."""
IN_CI = ("embeddings", "JPEG")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def fail(name: str, times: int, folder: Path) -> Counter[str]:
    """Let allocations of a reader fail at as many places; counts how it ended."""
    prepare(folder)
    reader = Reader(name, folder)
    last, rng = reader.count(), random.Random(0)
    ends = Counter[str]()
    for start in rng.sample(range(1, last + 1), min(times, last)):
        for length in IN_ROW:
            ends[reader.outcome(start, start + length)] += 1
    wrong = [end for end in ends if end not in (SAME, MEMORY) and not NOT_OURS.match(end)]
    assert not wrong
    assert ends[MEMORY]
    return ends


@pytest.mark.parametrize("name", IN_CI)
def test_sample_of_failed_allocations(name: str, tmp_path: Path) -> None:
    fail(name, 5, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_failed_allocations(name: str, tmp_path: Path) -> None:
    print(name, dict(fail(name, 60 if name == "package" else 200, tmp_path)))  # noqa: T201
