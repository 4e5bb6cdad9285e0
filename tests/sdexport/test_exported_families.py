"""Graphs of every family: exported and verified, with the same images as diffusers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from click.testing import CliRunner

from sdexport import Package, load_pipeline
from sdexport.cli import main
from sdexport.exporter import export
from sdexport.verification.verifier import verify
from tests.helpers.diffusers_images import (
    NEGATIVE,
    PROMPT,
    assert_same_images,
    generate_with_diffusers,
    image_inputs,
)
from tests.helpers.families import FAMILIES, build

QUICK = ("sdxl",)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in QUICK else [pytest.mark.slow]) for f in FAMILIES],
)
def test_family_exports_verifies_and_generates(family: str, tmp_path: Path) -> None:
    checkpoint = build(family, tmp_path / family)
    package = tmp_path / "package"
    totals: list[int] = []
    manifest = export(checkpoint, package, progress=lambda c, s, total: totals.append(total))
    assert set(totals) == {len(totals)}
    assert manifest.verification is not None and "image.pixels" in manifest.verification
    assert all(check.passed for check in verify(package))
    Package.load(package, trust="signed")  # operators of the table alone
    shown = CliRunner().invoke(main, ["inspect", str(package)])
    assert shown.exit_code == 0 and manifest.family in shown.stdout
    assert all(name in shown.stdout for name in manifest.components)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of configurations that diffusers calls outdated
        theirs: Any = diffusers.DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 3, "guidance_scale": 6.0}
    arguments |= image_inputs(family)
    if family != "lcm":
        arguments["negative_prompt"] = NEGATIVE
    if image_inputs(family):
        arguments["strength"] = 0.7
    expected = generate_with_diffusers(theirs, 5, **arguments)
    with load_pipeline(package) as ours:
        assert_same_images(ours(seed=5, **arguments), expected)
