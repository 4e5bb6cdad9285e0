"""The demo model on WebGPU, with a GPU in software: every component, and one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Package, load_pipeline
from sdexport.verification.limits import Arithmetics
from sdexport.verification.verifier import verify_package
from tests.tolerances import IMAGE_ABS

PIXELS = 64
ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "height": PIXELS,
    "width": PIXELS,
    "num_inference_steps": 2,
    "seed": 5,
}


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_component_reproduces_the_reference_output(
    software_gpu: None, package: Path, component: str
) -> None:
    checks = verify_package(Package.load(package), "webgpu", hashes=False, only=component)
    assert checks.passed, checks.failed
    assert all(check.backend == "webgpu" for check in checks)


def test_fp16_component_on_a_gpu_without_float16(software_gpu: None, half_package: Path) -> None:
    loaded = Package.load(half_package)
    assert Arithmetics(loaded, "webgpu", {}).of_graph("text_encoder") == "fp16"
    checks = verify_package(loaded, "webgpu", hashes=False, only="text_encoder")
    assert checks.passed, checks.failed


def test_image_is_that_of_the_cpu(software_gpu: None, package: Path) -> None:
    images = []
    for backend in ("onnxruntime", "webgpu"):
        with load_pipeline(package, backend, verify=False, low_memory=True) as pipe:
            images.append(np.asarray(pipe(**ARGUMENTS).images[0], int))
    expected, found = images
    assert expected.shape == (PIXELS, PIXELS, 3) and np.ptp(expected) > 0
    assert np.abs(found - expected).max() <= IMAGE_ABS
