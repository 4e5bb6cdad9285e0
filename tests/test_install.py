"""A torch-free install is real: its own environment, and the same picture byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAINT = """
import sys
from sdexport import load_pipeline
with load_pipeline(sys.argv[1]) as pipe:
    result = pipe("a red circle", num_inference_steps=8, scheduler="lms", seed=3)
sys.stdout.buffer.write(result.images[0].tobytes())
"""
ABSENT = ("torch", "transformers", "diffusers", "onnx", "scipy", "safetensors")


def run(*command: object) -> bytes:
    done = subprocess.run([str(part) for part in command], capture_output=True, cwd="/")
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_install_without_torch_paints_the_same(package: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "-q", "-c", constraints, f"{ROOT}[cpu]")
    code = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    assert run(python, "-c", code, *ABSENT).strip() == b"[]"
    assert run(python, "-c", PAINT, package) == run(sys.executable, "-c", PAINT, package)

    code = (
        "from sdexport.demo_model import MODEL_DIR as M; print(len(list(M.rglob('*.safetensors'))))"
    )
    assert run(python, "-c", code).strip() == b"3"

    sdexport = tmp_path / "venv" / "bin" / "sdexport"
    report = run(sdexport, "verify", package).decode()
    assert "FAILED" not in report and "picture" in report
    out = tmp_path / "a.png"
    run(sdexport, "generate", package, "a red circle", "-o", out, "--steps", 2, "--seed", 0)
    assert out.stat().st_size > 100

    failed = subprocess.run(
        [sdexport, "export", "somewhere", tmp_path / "p"], capture_output=True, text=True
    )
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert "run: pip install 'sdexport[export]'" in failed.stderr
    demo = subprocess.run([sdexport, "demo", tmp_path / "d"], capture_output=True, text=True)
    assert demo.returncode == 1 and "pip install 'sdexport[export]'" in demo.stderr
