"""Models at full size, end to end; SD 1.5 takes six gigabytes of disk, SDXL 14."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.full_size import run
from tests.parity.test_tokenizer_parity import REAL

BOUNDS = {
    ("sd15", "fp32"): (8.0, 180),
    ("sd15", "fp16"): (8.0, 180),
    ("sdxl", "fp16"): (16.0, None),
}
"""Most gigabytes and seconds that an export with its verification may take, on two cores that
nothing else uses."""


@pytest.mark.slow
@pytest.mark.parametrize("family, precision", BOUNDS)
def test_full_size_exports_verifies_and_paints(family: str, precision: str, tmp_path: Path) -> None:
    report = run(tmp_path, REAL, family=family, precision=precision, source=precision)
    most_gb, most_seconds = BOUNDS[family, precision]
    assert report["verified"]
    assert all(check["share"] <= 1 for check in report["checks"])
    assert {check["name"] for check in report["checks"]} >= {"unet", "picture"}
    export = report["stages"]["export"]
    assert export["peak_gb"] < most_gb
    assert most_seconds is None or export["seconds"] < most_seconds
    copy = report["component_gb"]["unet"] * (2 if precision == "fp16" else 1)
    recorded = [s for s in export["stages"] if s["component"] == "unet" and s["stage"] != "verify"]
    assert max(stage["anonymous_gb"] for stage in recorded) < copy + 1
