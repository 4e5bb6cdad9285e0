"""The limits of verification: from the manifest's figures, within the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdexport import Package
from sdexport.verification.limits import (
    FACTOR,
    RANGES,
    Arithmetics,
    ceilings,
    graph_limits,
    image_limits,
    own_arithmetic,
)
from tests.tolerances import FLOAT64_REL

KEY = "unet.out_sample"


def with_figures(package: Path, figures: dict[str, Any] | None) -> Any:
    return replace(Package.load(package).manifest, verification=figures)


@pytest.mark.parametrize("arithmetic", RANGES)
def test_floors_are_below_ceilings(arithmetic: str) -> None:
    found = RANGES[arithmetic]
    for floor, ceiling in (found.relative_l2, found.max_abs, found.image_max, found.image_rms):
        assert 0 < floor <= ceiling < float("inf")


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (2e-6, FACTOR * 2e-6),
        (0.0, RANGES["fp32"].relative_l2[0]),
        (-1.0, RANGES["fp32"].relative_l2[0]),
        (1e300, RANGES["fp32"].relative_l2[1]),
        (float("nan"), RANGES["fp32"].relative_l2[1]),
        (float("inf"), RANGES["fp32"].relative_l2[1]),
    ],
)
def test_limit_follows_what_the_export_measured(
    package: Path, measured: float, expected: float
) -> None:
    """A forged manifest widens it to the ceiling, and no further."""
    manifest = with_figures(package, {KEY: {"relative_l2": measured}})
    limits = graph_limits(manifest, "unet", "fp32").of_output("out_sample")
    assert limits["relative_l2"] == pytest.approx(expected, rel=FLOAT64_REL)
    assert limits["max_abs"] == RANGES["fp32"].max_abs[1]


def test_limits_without_figures_are_the_ceilings(package: Path) -> None:
    """Of packages that were exported without verification or by an older version."""
    older = {KEY: {"metric": "relative", "error": 1e-7, "cosine": 1.0, "bound": 5e-5}}
    for figures in (None, {}, older):
        manifest = with_figures(package, figures)
        assert graph_limits(manifest, "unet", "fp32").of_output("out_sample") == (
            ceilings("fp32").of_output("out_sample")
        )
        assert image_limits(manifest, "fp32")["image_rms"] == RANGES["fp32"].image_rms[1]


@pytest.mark.parametrize(
    ("backend", "options", "expected"),
    [
        ("onnxruntime", {}, "fp32"),
        ("openvino", {}, "fp32"),
        ("openvino", {"precision": "bf16"}, "openvino bf16"),
        ("openvino", {"precision": "f16"}, "openvino bf16"),
        ("openvino,precision=i8", {}, "openvino i8"),
        ({"unet": "openvino,precision=bf16"}, {}, "openvino bf16"),
        ({"vae_decoder": "openvino,precision=bf16"}, {}, "fp32"),
    ],
)
def test_arithmetic_is_that_of_the_backend(
    package: Path, backend: Any, options: dict[str, Any], expected: str
) -> None:
    pytest.importorskip("openvino")
    loaded = Package.load(package)
    found = Arithmetics(loaded, backend, options)
    assert found.of_graph("unet") == expected
    manifest = replace(loaded.manifest, verification={KEY: {"relative_l2": 1e-7}})
    limit = graph_limits(manifest, "unet", expected).of_output("out_sample")["relative_l2"]
    assert limit == RANGES[expected].relative_l2[expected != "fp32"]


def test_arithmetic_is_that_of_a_lower_package(half_package: Path) -> None:
    loaded = Package.load(half_package)
    assert Arithmetics(loaded, "onnxruntime", {}).of_components() == "fp16"


@pytest.mark.parametrize("precision", ["openvino i8", "i8", "unknown", "", "fp64"])
def test_unknown_precision_is_held_to_float32(package: Path, precision: str) -> None:
    """A forged manifest cannot name an arithmetic of wider limits."""
    manifest = Package.load(package).manifest
    unet = replace(manifest.components["unet"], precision=precision)
    forged = replace(manifest, components={**manifest.components, "unet": unet})
    assert own_arithmetic(forged, "unet") == "fp32"
