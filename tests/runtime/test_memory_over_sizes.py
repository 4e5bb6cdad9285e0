"""Memory over many sizes of images: what a library keeps for each size is bounded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import soak
from tests.tolerances import LEAK_MB, SIZES_MB

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")

LARGEST = 256
"""Width and height of images, in pixels."""
UNET = """
import random, sys
from pathlib import Path
import numpy as np
from sdexport import open_session
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
sizes = [(height, width) for height in range(6, 18) for width in range(6, 18)]
random.Random(0).shuffle(sizes)
session = open_session(sys.argv[1], sys.argv[2], threads=1)
for k, (height, width) in enumerate(sizes[:100], 1):
    known = {"batch": 2, "height": height, "width": width, "sequence": 77}
    session.run({
        spec.name: np.zeros([known.get(size, size) for size in spec.shape], spec.dtype)
        for spec in session.inputs
    })
    if k in (50, 100):
        print(resident())
"""


def growth(script: str, *arguments: object) -> float:
    """Resident memory at the end minus that before, in MB, in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = map(float, done.stdout.split())
    return after - before


def growth_over_images(package: Path, images: int, sizes: int, **what: Any) -> float:
    """Resident memory at the end minus that after a quarter of the images, in MB."""
    return float(soak(package, images, LARGEST, {"sizes": sizes, **what})["growth_mb"])


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_memory_of_a_unet_is_flat_over_sizes(package: Path, backend: str) -> None:
    """With OpenVINO's own limit, 50 further sizes take 72 MB."""
    pytest.importorskip(backend)
    assert growth(UNET, package / "unet" / "model.onnx", backend) <= LEAK_MB


@pytest.mark.slow
@pytest.mark.parametrize("distinct", [40, 300])
@pytest.mark.parametrize(
    ("backends", "further"),
    [
        ("openvino", {}),
        ("openvino", {"options": {"precision": "bf16"}}),
        ("openvino", {"options": {"vae_tile": 64}}),
        ("onnxruntime", {}),
        ({"unet": "openvino", "*": "onnxruntime"}, {}),
    ],
)
def test_memory_stays_flat_over_images_of_many_sizes(
    package: Path, backends: Any, further: dict[str, Any], distinct: int
) -> None:
    pytest.importorskip("openvino")
    assert growth_over_images(package, 300, distinct, backends=backends, **further) <= SIZES_MB


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_memory_stays_flat_with_low_memory(package: Path, backend: str) -> None:
    """Each image opens its components again."""
    pytest.importorskip(backend)
    further = {"backends": backend, "options": {"low_memory": True}}
    assert growth_over_images(package, 80, 80, **further) <= SIZES_MB
