"""Processes timed to their first images: marks of time, memory, file cache, rows and table."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from benchmarks import file_cache, plots, startup_table
from benchmarks.contenders import OURS, PEERS
from benchmarks.startup import _without
from benchmarks.startup_process import ProcessFailedError, measured
from benchmarks.startup_programs import PROGRAMS, REFERENCE, chosen
from sdexport.demo_model import MODEL_DIR

SCRIPT = """
import os, pathlib, sys, time
first, second, gate = map(pathlib.Path, sys.argv[1:])
block = b"x" * 50_000_000
first.write_text("1")
time.sleep(1)  # memory is sampled meanwhile
while not gate.exists():
    time.sleep(0.01)
second.write_text("2")
"""
BLOCK_MB = 50.0


def test_outputs_mark_the_time_and_memory_is_sampled(tmp_path: Path) -> None:
    first, second = tmp_path / "0", tmp_path / "1"
    command = [sys.executable, "-c", SCRIPT, first, second, first]  # goes on at once
    found = measured(command, [first, second])
    early, late = found["images_s"]
    assert 0 < early <= late <= found["exit_s"]
    memory = found["memory_mb"]
    assert memory["peak_mb"] > BLOCK_MB and memory["private_mb"] > BLOCK_MB
    assert 0 < memory["mapped_mb"] < memory["peak_mb"]


def test_failing_process_is_named_with_its_last_line(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with pytest.raises(ProcessFailedError, match="exit status 1: no such model"):
        measured(failing, [tmp_path / "0"])
    with pytest.raises(ProcessFailedError, match="exit status 0"):
        measured([sys.executable, "-c", "pass"], [tmp_path / "0"])


def test_process_that_never_ends_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, tmp_path / "0", tmp_path / "1", tmp_path / "never"]
    with pytest.raises(ProcessFailedError, match="no end after 0 s"):
        measured(command, [tmp_path / "0", tmp_path / "1"], timeout=0.2)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise here")
def test_files_are_warmed_and_their_cached_share_is_known(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w" * 5_000_000)
    (tmp_path / "model" / "empty").write_bytes(b"")
    file_cache.warm([tmp_path])
    assert file_cache.cached_share([tmp_path]) == 1
    file_cache.drop([tmp_path])  # a file system in memory keeps its pages
    assert 0 <= file_cache.cached_share([tmp_path]) <= 1
    assert file_cache.cached_share([tmp_path / "none"]) == 0


def test_chosen_programs_bring_those_they_are_compared_with() -> None:
    names = [program.name for program in chosen(["sdexport openvino bf16"], [])]
    assert names[:2] == ["diffusers fp32", "diffusers bf16"]
    assert names[2:] == ["sdexport openvino bf16", "sdexport openvino bf16 prepared"]
    assert [p.name for p in chosen(["optimum fp32"], [])] == [REFERENCE.name, "optimum fp32"]
    assert not any(p.library == OURS for p in chosen([], [OURS]))
    with pytest.raises(ValueError, match="no program 'fast'; choose among diffusers fp32"):
        chosen([], ["fast"])


def test_every_other_library_has_a_script_and_requirements() -> None:
    for program in PROGRAMS.values():
        if program.library != OURS:
            assert (PEERS / f"{program.library}_start.py").is_file()
            lines = PEERS / f"{program.environment or program.library}.txt"
            assert all("==" in line for line in lines.read_text(encoding="utf-8").split())


def test_weights_are_merged_into_one_file_for_stable_diffusion_cpp(tmp_path: Path) -> None:
    script = PEERS / "stable_diffusion_cpp_worker.py"
    command = [sys.executable, script, "prepare", MODEL_DIR, tmp_path]
    subprocess.run(list(map(str, command)), check=True)
    with safe_open(tmp_path / "model.safetensors", "np") as whole:
        names = set(whole.keys())
        for prefix, part in (("unet.", "unet"), ("vae.", "vae"), ("te.", "text_encoder")):
            (path,) = (MODEL_DIR / part).glob("*.safetensors")
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118  no mapping
                    expected = file.get_tensor(name)
                    assert np.array_equal(whole.get_tensor(prefix + name), expected)
                    names.remove(prefix + name)
    assert not names


MACHINE = {"cores": 2, "cpu_family": "25", "cpu_flags": ["avx2", "avx512_bf16"]}


def row(name: str, seconds: float, *, run: str = "today", **changes: Any) -> dict[str, Any]:
    memory = {"peak_mb": 2000.0, "private_mb": 1500.0, "mapped_mb": 400.0}
    found = {"name": name, "process": "first", "files": "warm", "run": run}
    found |= {"images_s": [seconds, seconds + 1], "memory_mb": memory, "others_cores": 0.0}
    return found | {"check": [{"mean": 0.0, "passed": True}] * 2} | changes


def test_rows_of_another_run_are_replaced_and_those_of_rounds_kept() -> None:
    rows = [row("diffusers fp32", 8.0, run="yesterday"), row("gone", 1.0)]
    rows = _without(rows, row("optimum fp32", 9.0), list(PROGRAMS))
    assert [r["name"] for r in rows] == ["diffusers fp32"]
    assert _without(rows, row("diffusers fp32", 9.0), list(PROGRAMS)) == []
    assert len(_without(rows, row("diffusers fp32", 9.0, run="yesterday"), list(PROGRAMS))) == 1


@pytest.fixture
def report() -> dict[str, Any]:
    prepared = "sdexport openvino fp32 prepared"
    rows = [
        row("diffusers fp32", 20.0),
        row(prepared, 9.0, process="first"),
        row(prepared, 10.0, process="later"),
        row(prepared, 12.0, process="later", files="cold"),
        row("sdexport onnxruntime fp32", 5.0, run="yesterday"),
        row("diffusers bf16", 8.0, check=[{"mean": 70.0, "passed": False}]),
        {"name": "optimum fp32", "process": "first", "files": "warm", "run": "today"}
        | {"error": "installing optimum.txt failed"},
    ]
    model = {"rows": rows, "size": [256, 256], "num_inference_steps": 5, "machine": MACHINE}
    return {"models": {"sd15": model}}


def test_table_shows_shares_goals_and_what_went_wrong(report: dict[str, Any]) -> None:
    text = startup_table.table([report])
    prepared = "| sdexport openvino fp32 prepared"
    assert f"{prepared} | first | 9 | 10 | **0.45** | 0.45 | - | 2.00 | 1.50 | 0.40 |" in text
    assert f"{prepared} | later | 10 | 11 | 0.50 | 0.45 | 12 |" in text
    assert "| sdexport onnxruntime fp32 | first | 5 | 6 | - |" in text  # of another run
    assert "- optimum fp32: installing optimum.txt failed" in text
    assert "- diffusers bf16: its rounding gives another image (mean difference 70 of 255)" in text
    assert "Other processes" not in text
    assert "two images, 2 Zen 4 cores; seconds" in text
    assert "(benchmarks/first-image-sd15-family25.png)" in text
    report["models"]["sd15"]["rows"][0]["others_cores"] = 1.5
    assert "- Other processes used up to 1.5 cores meanwhile." in startup_table.table([report])


def test_each_kind_of_processor_has_a_table(report: dict[str, Any]) -> None:
    other = copy.deepcopy(report)
    other["models"]["sd15"]["machine"] = {"cores": 8, "cpu_family": "6", "cpu_flags": ["avx2"]}
    text = startup_table.table([report, other])
    assert text.startswith(startup_table.table([report]))
    assert "two images, 8 cores; seconds" in text
    assert "(benchmarks/first-image-sd15-family6.png)" in text


def test_demo_model_has_a_goal_of_its_own() -> None:
    program = PROGRAMS["sdexport onnxruntime fp32"]
    assert startup_table.goal_of("demo", program, "first") == startup_table.DEMO_GOAL
    assert startup_table.goal_of("sd15", program, "first") is None
    assert startup_table.goal_of("demo", REFERENCE, "first") is None


def test_plot_is_written_if_anything_was_measured(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = report["models"]["sd15"]["rows"]
    assert plots.first_images(rows, tmp_path / "a.png", "sd15")
    assert (tmp_path / "a.png").stat().st_size
    assert not plots.first_images([], tmp_path / "b.png", "sd15")
