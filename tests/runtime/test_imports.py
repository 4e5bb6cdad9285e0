"""The runtime is light: what it must not bring along, and the names it promises."""

from __future__ import annotations

import subprocess
import sys

import sdexport.runtime

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "click",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "polygraphy",
    "cuda",
    "scipy",
)


def test_import_leaves_heavy_packages_out() -> None:
    code = (
        "import sys, engines; from runtime import *; "
        f"print([n for n in {HEAVY!r} if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_command_line_help_leaves_torch_out() -> None:
    code = (
        "import sys\nfrom sdexport.cli import main\n"
        "try: main(['generate', '--help'])\n"
        f"except SystemExit: print([n for n in {HEAVY!r} if n in sys.modules and n != 'click'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("[]")


def test_public_names() -> None:
    assert set(sdexport.runtime.__all__) == {
        "ClipTokenizer",
        "DenoiseStep",
        "EngineError",
        "Guidance",
        "GuidanceState",
        "Manifest",
        "Package",
        "PackageError",
        "Parameters",
        "Pipeline",
        "Result",
        "TorchGenerator",
        "load_pipeline",
        "save_png",
        "schedulers",
    }
    assert all(hasattr(sdexport.runtime, name) for name in sdexport.runtime.__all__)
