"""The benchmark of a step's host work runs, and both loops end at the same latents."""

from __future__ import annotations

from benchmarks.overhead import NAMES, measure


def test_overhead_times_ours_and_diffusers() -> None:
    rows = measure(1, NAMES[:2])
    assert list(rows) == list(NAMES[:2])
    for row in rows.values():
        assert set(row) == {"ours", "diffusers"}
        assert all(peer["median_us"] > 0 for peer in row.values())
