"""Models at full size, end to end; SD 1.5 takes six gigabytes of disk, SDXL 14."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.full_size import run
from benchmarks.full_size_plans import measure as measure_plans
from benchmarks.gpu_models import MODELS, checkpoint, write_package
from sdexport.cli import main
from tests.helpers.vocabularies import REAL

BOUNDS = {
    ("sd15", "fp32"): (8.0, 180),
    ("sd15", "fp16"): (8.0, 180),
    ("sdxl", "fp16"): (16.0, None),
}
"""Most gigabytes and seconds that an export with its verification may take, on two cores that
nothing else uses."""


@pytest.mark.slow
@pytest.mark.parametrize("family, precision", BOUNDS)
def test_full_size_exports_verifies_and_generates(
    family: str, precision: str, tmp_path: Path
) -> None:
    report = run(
        tmp_path,
        REAL,
        family=family,
        precision=precision,
        source=precision,
        low_memory=family == "sdxl",  # without it, its verification takes 22 GB
    )
    most_gb, most_seconds = BOUNDS[family, precision]
    assert report["verified"]
    assert all(check["share"] <= 1 for check in report["checks"])
    assert {check["name"] for check in report["checks"]} >= {"unet", "image"}
    export = report["stages"]["export"]
    assert export["peak_gb"] < most_gb
    assert most_seconds is None or export["seconds"] < most_seconds
    copy = report["component_gb"]["unet"] * (2 if precision == "fp16" else 1)
    recorded = [s for s in export["stages"] if s["component"] == "unet" and s["stage"] != "verify"]
    assert max(stage["anonymous_gb"] for stage in recorded) < copy + 1


@pytest.mark.slow
def test_full_size_unet_in_fp16_builds_without_a_gpu(tmp_path: Path) -> None:
    """TensorRT-RTX, with a profile for 512x512 and one up to 1024x1024."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    package = tmp_path / "package"
    source = checkpoint(MODELS["sd15"], tmp_path / "checkpoint")
    write_package(source, package, half=True)

    def call(*arguments: str) -> list[dict[str, object]]:
        result = CliRunner().invoke(main, [arguments[0], str(package), *arguments[1:], "--json"])
        assert result.exit_code == 0, result.stderr
        found: list[dict[str, object]] = json.loads(result.stdout)["engines"]
        return found

    sizes = ("--batch", "1:1:4", "--height", "512:512:1024", "--width", "512:512:1024", "--static")
    only = ("--component", "unet")
    (built,) = call("build", "--backend", "tensorrt-rtx", *sizes, *only)
    assert built["built"] and float(str(built["size"])) > 1.7e9
    (engine,) = call("inspect")
    assert engine["fits"] and engine["library_version"] in str(built["library"])
    assert engine["profiles"] == [
        {"batch": "2:2:2", "height": "64:64:64", "width": "64:64:64", "sequence": "77:77:77"},
        {"batch": "1:2:8", "height": "64:64:128", "width": "64:64:128", "sequence": "77:77:231"},
    ]
    (again,) = call("build", "--backend", "tensorrt-rtx", *sizes, *only)
    assert not again["built"]


PLANS = {
    "sd15": (["--side", "512:512:1024", "--batch", "1:1:4"], 8.0),
    "sdxl": (["--side", "1024:1024:1024", "--batch", "1:1:1", "--weight-streaming"], 23.0),
}
"""Arguments of the builds, and the most gigabytes that the builder may take."""


@pytest.mark.slow
@pytest.mark.parametrize("model", PLANS)
def test_full_size_engines_are_built_in_memory_with_fused_attention(
    model: str, tmp_path: Path
) -> None:
    """Every component in fp16: all attention but that of the VAE, with a head of 512, is fused."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    package = tmp_path / "package"
    write_package(checkpoint(MODELS[model], tmp_path / "checkpoint"), package, half=True)
    arguments, most_gb = PLANS[model]
    components = measure_plans(package, arguments)["components"]
    assert len(components) == (5 if model == "sdxl" else 4)
    for name, found in components.items():
        assert found["peak_gb"] < most_gb
        for profile in found["profiles"]:
            fused = 0 if name.startswith("vae") else profile["total"]
            assert profile["total"] > 0 and profile["fused"] == fused, name
