"""sdexport bench: the report, its table, and backends that cannot run."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sdexport.bench.bench_table import table
from sdexport.bench.benchmark import bench, in_turn
from sdexport.bench.measure import machine, summary
from sdexport.cli import main
from sdexport.engines import backends
from sdexport.engines.backends import available
from sdexport.engines.errors import WorkerError
from sdexport.runtime.component_backends import BackendSpec
from tests.helpers.changed_package import as_optimum_folder


@pytest.fixture(scope="module")
def report(package: Path) -> dict[str, Any]:
    contenders = [BackendSpec("onnxruntime"), BackendSpec("openvino", {"precision": "bf16"})]
    contenders += [BackendSpec("tensorrt-rtx"), BackendSpec("onnxruntime", {"colour": "red"})]
    return bench(package, contenders, size=(64, 64), num_inference_steps=2, repeats=3)


def test_bench_times_components_and_images(report: dict[str, Any]) -> None:
    row = report["backends"]["onnxruntime"]
    assert list(row["components"]) == ["text_encoder", "unet", "vae_decoder"]
    for figures in (*row["components"].values(), row["image"]):
        assert len(figures["samples_s"]) == 3
        assert 0 < figures["p20_s"] <= figures["median_s"] <= figures["p80_s"]
        assert figures["warm_up_s"] > 0 and figures["peak_mb"] > 50
    assert set(row["image"]["stages"]) == {"encode", "denoise", "decode"}
    assert {"numpy", "onnxruntime"} <= set(row["versions"])
    assert report["machine"]["cores"] >= 1
    json.dumps(report)


def test_bench_compares_each_backend_with_pytorch(report: dict[str, Any]) -> None:
    exact = report["backends"]["onnxruntime"]["check"]
    assert exact["passed"] and {c["name"] for c in exact["checks"]} >= {"unet", "image"}
    lower = report["backends"]["openvino,precision=bf16"]["check"]
    assert lower["passed"] and _unet_error(lower) > 100 * _unet_error(exact)
    assert "differs" not in table(report)
    failed = copy.deepcopy(report)
    failed["backends"]["onnxruntime"]["check"]["passed"] = False
    assert "differs" in table(failed)


def test_bench_reports_backends_that_cannot_run(report: dict[str, Any]) -> None:
    rows, text = report["backends"], table(report)
    for label, words in (
        ("tensorrt-rtx", "build it: sdexport build"),
        ("onnxruntime,colour=red", "takes no option 'colour'"),
    ):
        assert words in rows[label]["error"] and "image" not in rows[label]
        assert words in text


def test_bench_needs_no_reference_outputs(package_copy: Path) -> None:
    as_optimum_folder(package_copy)
    found = bench(package_copy, [BackendSpec("onnxruntime")], size=(64, 64), repeats=1)
    assert found["backends"]["onnxruntime"]["check"]["passed"] is None
    assert "no reference" in table(found)


def test_bench_command_prints_one_document(package: Path) -> None:
    arguments = ["bench", str(package), "--size", "64x64", "--steps", "1", "--repeats", "1"]
    done = CliRunner().invoke(main, [*arguments, "--backend", "onnxruntime", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["backends"]["onnxruntime"]["image"]["median_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "65x64"], "multiples of 8"),
        (["--backend", "fast"], "unknown backend 'fast'; choose one of"),
        (["--backend", "openvino,precision"], "expected OPTION=VALUE"),
        (["--backend", "tensorrt-rtx"], "no backend could be measured"),
    ],
)
def test_bench_command_fails_in_one_line(package: Path, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(main, ["bench", str(package), *arguments])
    assert done.exit_code == 1
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_bench_command_names_what_to_install_if_no_backend_is(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "available", lambda **_: [])
    done = CliRunner().invoke(main, ["bench", str(package)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no inference engine is installed; run: pip install" in done.stderr


def test_bench_worker_imports_no_torch() -> None:
    code = "import sys, sdexport.bench.bench_worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Scripted:
    """Answers 1, 2, 3 seconds and so on, and fails at one call."""

    def __init__(self, order: list[str], name: str, fails_at: int = -1) -> None:
        self.order, self.name, self.fails_at, self.calls = order, name, fails_at, 0

    def request(self, do: str, **arguments: Any) -> dict[str, float]:
        self.order.append(self.name)
        self.calls += 1
        if self.calls == self.fails_at:
            raise WorkerError("broken")
        return {"seconds": float(self.calls), "peak_mb": 10.0 * self.calls}


def test_in_turn_alternates_and_leaves_the_warm_up_out() -> None:
    order: list[str] = []
    workers: dict[str, Any] = {"a": Scripted(order, "a"), "b": Scripted(order, "b", fails_at=2)}
    found = in_turn(workers, "component", [{"name": "unet"}] * 4)
    assert order == ["a", "b", "a", "b", "a", "a"]
    assert found["b"] == {"error": "broken"}
    assert found["a"]["samples_s"] == [2, 3, 4] and found["a"]["median_s"] == 3
    assert found["a"]["warm_up_s"] == 1 and found["a"]["peak_mb"] == 40


def test_summary_stays_within_its_samples() -> None:
    assert summary([2.0]) == {"median_s": 2, "p20_s": 2, "p80_s": 2, "samples_s": [2]}
    few = summary([1.0, 5.0])
    assert few["p20_s"] >= 1 and few["p80_s"] <= 5
    with pytest.raises(ValueError, match="no samples"):
        summary([])


def test_machine_and_backends_are_known_here() -> None:
    assert machine()["cpu"] and isinstance(machine()["cpu_flags"], list)
    assert "onnxruntime" in available()


def _unet_error(check: dict[str, Any]) -> float:
    """The first measure of the UNet's output, which ran in the backend's own arithmetic."""
    row = next(c for c in check["checks"] if c["name"] == "unet" and c["output"] == "out_sample")
    return float(row["measures"][0]["value"])
