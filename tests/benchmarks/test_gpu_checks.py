"""The GPU benchmark, run on a CPU with the demo model, so that it works when a GPU is there."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import docs_tables, gpu, gpu_models
from benchmarks.gpu_models import Model
from sdexport.builds.engine_builder import EngineSizes
from tests.helpers.fake_tensorrt import install, write_plan
from tests.tolerances import GPU_TASK_COSINE, IMAGE_ABS

TINY = Model("tiny", 64, (64,), (1, 2), (1, 2), "ddim")
TRT = "tensorrt"


@pytest.fixture(scope="module")
def args(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A dry run on the exported package; TensorRT is a stand-in with an engine for the UNet."""

    def build(package: Any, *, engine_dir: Path, sizes: EngineSizes, **options: Any) -> list[Any]:
        assert sizes.static and sizes.height is not None
        (engine_dir / TRT).mkdir(parents=True)
        write_plan(package.model_path("unet"), engine_dir / TRT / "unet.plan", TRT)
        return []

    def write(source: Any, folder: Path, *, half: bool) -> None:
        shutil.copytree(package, folder)

    work = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        patch.setattr(gpu, "build", build)
        patch.setattr(gpu, "write_package", write)
        patch.setitem(gpu_models.MODELS, "tiny", TINY)
        line = ["--device", "cpu", "--models", "tiny", "--work", work, "--json", work / "a.json"]
        line += ["--repeats", 2, "--seconds", 1, "--backends", "onnxruntime", TRT, "torch"]
        yield gpu.parse([str(word) for word in line])


@pytest.fixture(scope="module")
def report(args: Any) -> dict[str, Any]:
    return gpu.run(args)


def test_gpu_benchmark_runs_every_task(report: dict[str, Any]) -> None:
    assert not {name: result for name, result in report.items() if "error" in result}
    assert report["environment"]["gpu"]["name"] == "Fake GPU"
    for backend in ("onnxruntime", TRT):
        assert report[f"tiny.contract.{backend}"]["outputs_untouched"]
    for name in ("unet.2x64", "unet.1x64", "text_encoder.1x64", "vae_decoder.1x64"):
        task = report[f"tiny.{name}"]
        assert task["work"]["flops"] > 1e6 and task["work"]["bytes"] > 1e6
        for backend in ("onnxruntime", "torch"):
            row = task[backend]
            assert row["to_fp32"]["cosine"] > GPU_TASK_COSINE
            assert row["host"]["median_us"] > 0 and row["shares"]["arithmetic"] > 0
    for steps in TINY.steps:
        task = report[f"tiny.picture.{steps}"]
        assert len(task["torch"]["seconds"]) == gpu.IMAGES
        assert task["onnxruntime"]["most_of_255"] <= IMAGE_ABS


def test_gpu_benchmark_times_no_wrong_output(report: dict[str, Any]) -> None:
    """The stand-in computes something else, and has no text encoder."""
    wrong = report["tiny.unet.2x64"][TRT]
    assert wrong["to_fp32"]["cosine"] < gpu.COSINE and "host" not in wrong
    assert "no engine" in report["tiny.text_encoder.1x64"][TRT]["error"]
    assert "host" in report["tiny.text_encoder.1x64"]["torch"]


def test_gpu_benchmark_continues_its_report(
    args: Any, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.run(args).keys() == report.keys()
    assert capsys.readouterr().out == ""
    late = argparse.Namespace(**vars(args) | {"json": tmp_path / "late.json", "budget": 0.0})
    assert gpu.run(late) == {} and "no time left" in capsys.readouterr().out


def test_gpu_benchmark_makes_the_table(report: dict[str, Any]) -> None:
    table = docs_tables.gpu(report)
    assert table.startswith("On Fake GPU (`python -m benchmarks.gpu`; random weights; ")
    assert "| batch x pixels | onnxruntime | torch |" in table
    assert "| 2x64 | " in table and "tiny: whole image, s:" in table


@pytest.mark.slow
def test_gpu_benchmark_compiles_and_makes_its_package(tmp_path: Path) -> None:
    line = [
        "--device",
        "cpu",
        "--models",
        "tiny",
        "--work",
        tmp_path,
        "--json",
        tmp_path / "a.json",
    ]
    line += ["--repeats", 2, "--seconds", 1, "--backends", "onnxruntime", "torch", gpu.COMPILED]
    report = gpu.run(gpu.parse([str(word) for word in line]))
    assert not {name: result for name, result in report.items() if "error" in result}
    for name in ("unet", "vae_decoder", "text_encoder"):
        batch = 2 if name == "unet" else 1
        row = report[f"tiny.{name}.compiled.{batch}x128"][gpu.COMPILED]
        assert row["to_torch"]["cosine"] > GPU_TASK_COSINE and row["host"]["median_us"] > 0
    assert report["tiny.picture.compiled.4"][gpu.COMPILED]["most_of_255"] <= IMAGE_ABS
