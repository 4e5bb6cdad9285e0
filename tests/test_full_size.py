"""SD 1.5 at full size, end to end; about nine gigabytes of disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.full_size import run
from tests.parity.test_tokenizer_parity import REAL

MOST_MEMORY_GB = 10.0


@pytest.mark.slow
def test_full_size_exports_verifies_and_paints(tmp_path: Path) -> None:
    report = run(tmp_path, REAL)
    assert report["verified"]
    assert report["external_data_gb"] > 2
    assert report["stages"]["export"]["peak_gb"] < MOST_MEMORY_GB
    assert all(check["share"] <= 1 for check in report["checks"])
    assert {check["name"] for check in report["checks"]} >= {"unet", "picture"}
