"""The ControlNet and the LoRAs that are shipped with sdexport, and what they do to images."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import load_file

from sdexport import Package, load_pipeline, verify
from sdexport.demo_model import CONTROLNET_PACKAGE_DIR, LORA_DIR, PACKAGE_DIR, styles
from sdexport.demo_model.evaluate_adapters import (
    CASES,
    FULL,
    Adapters,
    held_out_cases,
    outline_figures,
    passes,
    run,
    style_amounts,
)
from sdexport.demo_model.outline_controlnet import PRECISION
from tests.tolerances import FEW_CASES_OVERLAP, FEW_CASES_STYLED

BEFORE = 12_103_607
"""Bytes of the package before there were adapters."""
MOST_ADDED = 6_000_000


@pytest.fixture(scope="module")
def adapters() -> Iterator[Adapters]:
    with Adapters(PACKAGE_DIR, CONTROLNET_PACKAGE_DIR, LORA_DIR) as found:
        yield found


def test_shipped_adapters_are_small() -> None:
    folders = (PACKAGE_DIR, CONTROLNET_PACKAGE_DIR, LORA_DIR)
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= BEFORE + MOST_ADDED


def test_shipped_controlnet_computes_what_pytorch_did() -> None:
    loaded = Package.load(CONTROLNET_PACKAGE_DIR)
    assert {part.precision for part in loaded.manifest.components.values()} == {PRECISION}
    checks = verify(CONTROLNET_PACKAGE_DIR)
    assert checks.passed and not checks.not_checked
    names = {check.name for check in checks}
    assert {"controlnet", "control_embedding"} <= names


def test_shipped_loras_change_the_unet_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Every weight of a file fits the package, which would warn of others."""
    for file in LORA_DIR.iterdir():
        assert all(name.startswith("unet.") for name in load_file(file))
    files = sorted(LORA_DIR.iterdir())
    assert [file.name for file in files] == [f"{s}.safetensors" for s in sorted(styles.STYLES)]
    with caplog.at_level(logging.WARNING), load_pipeline(PACKAGE_DIR) as pipe:
        for file in files:
            pipe("a red star", loras=[(file, 1.0)], num_inference_steps=1, seed=0)
    assert caplog.records == []


def test_shipped_adapters_do_what_they_are_for(adapters: Adapters) -> None:
    """A few of the held-out cases: outlines are followed, and styles present where they should be.

    Their bounds allow for the spread of so few; test_shipped_adapters_on_every_case judges all.
    """
    cases = held_out_cases(8)
    plain = adapters.generate(cases)
    assert outline_figures(plain, cases)["overlap"] >= FEW_CASES_OVERLAP
    for style in styles.STYLES:
        both = adapters.generate(cases, style=style)
        assert outline_figures(both, cases)["overlap"] >= FEW_CASES_OVERLAP, style
        without, with_ = (style_amounts(i, cases, style, placed=True) for i in (plain, both))
        assert np.mean(without < FULL) == 1, style
        assert np.mean(with_ >= FULL) >= FEW_CASES_STYLED, style
        alone = adapters.generate(cases, outlines=False, style=style)
        amounts = style_amounts(alone, cases, style, placed=False)
        assert np.mean(amounts >= FULL) >= FEW_CASES_STYLED, style


@pytest.mark.slow
def test_shipped_adapters_on_every_case(adapters: Adapters) -> None:
    report = run(adapters, CASES)
    assert passes(report), report
