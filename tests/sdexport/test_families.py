"""Graphs of every family: exported, verified, and painting as diffusers does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from click.testing import CliRunner

from sdexport import load_pipeline
from sdexport.cli import main
from sdexport.exporter import export
from sdexport.verification.verifier import verify
from tests.families import FAMILIES, build
from tests.parity.test_family_parity import NEGATIVE, PROMPT, given, theirs_paint
from tests.parity.test_picture_parity import assert_same_pictures

QUICK = ("sdxl",)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in QUICK else [pytest.mark.slow]) for f in FAMILIES],
)
def test_family_exports_verifies_and_paints(family: str, tmp_path: Path) -> None:
    checkpoint = build(family, tmp_path / family)
    package = tmp_path / "package"
    totals: list[int] = []
    manifest = export(checkpoint, package, progress=lambda c, s, total: totals.append(total))
    assert set(totals) == {len(totals)}
    assert manifest.verification is not None and "picture.pixels" in manifest.verification
    assert all(check.passed for check in verify(package))
    shown = CliRunner().invoke(main, ["inspect", str(package)])
    assert shown.exit_code == 0 and manifest.family in shown.stdout
    assert all(name in shown.stdout for name in manifest.components)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of configurations that diffusers calls outdated
        theirs: Any = diffusers.DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 3, "guidance_scale": 6.0}
    arguments |= given(family)
    if family != "lcm":
        arguments["negative_prompt"] = NEGATIVE
    if given(family):
        arguments["strength"] = 0.7
    expected = theirs_paint(theirs, 5, **arguments)
    with load_pipeline(package) as ours:
        assert_same_pictures(ours(seed=5, **arguments), expected)
