"""An installation without PyTorch: its own environment, and the same image byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.distributions import ROOT, build, copy_sources, run

GENERATE = """
import sys
from sdexport import load_pipeline
with load_pipeline(sys.argv[1]) as pipe:
    result = pipe("a red circle", num_inference_steps=8, scheduler="lms", seed=3)
print(result.images[0].tobytes().hex())
"""
FIND = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
ABSENT = ("torch", "transformers", "diffusers", "onnx", "scipy", "safetensors", "mypy", "pytest")
DEMO_PACKAGE = ROOT / "sdexport/demo_model/package"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of an environment with sdexport[cpu] from the wheel, and no more."""
    folder = tmp_path_factory.mktemp("install")
    wheel = build(copy_sources(folder / "source"), folder, "wheel")
    run(sys.executable, "-m", "venv", folder / "venv")
    scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    constraints = ROOT / "constraints.txt"
    pip = (scripts / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q")
    run(*pip, "-c", constraints, f"{wheel}[cpu]")
    return scripts


def test_install_without_torch_generates_the_same(
    scripts: Path, package: Path, tmp_path: Path
) -> None:
    python = scripts / "python"
    assert run(python, "-c", FIND, *ABSENT).strip() == "[]"
    generated = run(python, "-c", GENERATE, package)
    assert generated == run(sys.executable, "-c", GENERATE, package, cwd=ROOT)

    report = run(scripts / "sdexport", "verify", package)
    assert "FAILED" not in report
    out = tmp_path / "a.png"
    arguments = ("a red circle", "-o", out, "--steps", 2, "--seed", 0)
    run(scripts / "sdexport", "generate", package, *arguments)
    assert out.stat().st_size > 100


def test_install_without_torch_says_how_to_export(scripts: Path, tmp_path: Path) -> None:
    failed = subprocess.run(
        [scripts / "sdexport", "export", "somewhere", tmp_path / "p"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert "run: pip install 'sdexport[export]'" in failed.stderr


@pytest.mark.skipif(not DEMO_PACKAGE.is_dir(), reason="the repository has no demo package yet")
def test_install_without_torch_runs_the_demo(scripts: Path, tmp_path: Path) -> None:
    run(scripts / "sdexport", "demo", tmp_path / "demo")
    assert (tmp_path / "demo" / "sheet.png").stat().st_size > 10_000
