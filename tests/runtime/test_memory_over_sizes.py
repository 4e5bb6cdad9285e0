"""Memory over many sizes of images: what a library keeps for each size is bounded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tolerances import LEAK_MB, SIZES_MB

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")

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

IMAGES = """
import json, random, sys
from pathlib import Path
from sdexport import load_pipeline
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
package, backends, count, distinct, options = sys.argv[1:]
options = json.loads(options)
call = options.pop("call", {})
sizes = [(height, width) for height in range(64, 257, 8) for width in range(64, 257, 8)]
rng = random.Random(0)
rng.shuffle(sizes)
sizes = sizes[:int(distinct)]
pipe = load_pipeline(package, json.loads(backends), threads=1, **options)
for k in range(1, int(count) + 1):
    height, width = sizes[k - 1] if int(distinct) >= int(count) else rng.choice(sizes)
    images = rng.randint(1, 2)
    pipe("a star", height=height, width=width, num_inference_steps=2, seed=k,
         num_images_per_prompt=images, **call)
    if k in (int(count) // 4, int(count)):
        print(resident())
"""


def growth(script: str, *arguments: object) -> float:
    """Resident memory at the end minus that before, in MB, in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = map(float, done.stdout.split())
    return after - before


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_memory_of_a_unet_is_flat_over_sizes(package: Path, backend: str) -> None:
    """With OpenVINO's own limit, 50 further sizes take 72 MB."""
    pytest.importorskip(backend)
    assert growth(UNET, package / "unet" / "model.onnx", backend) <= LEAK_MB


@pytest.mark.slow
@pytest.mark.parametrize("distinct", [40, 300])
@pytest.mark.parametrize(
    ("backends", "options"),
    [
        ('"openvino"', "{}"),
        ('"openvino"', '{"precision": "bf16"}'),
        ('"openvino"', '{"call": {"vae_tile": 64}}'),
        ('"onnxruntime"', "{}"),
        ('{"unet": "openvino", "*": "onnxruntime"}', "{}"),
    ],
)
def test_memory_stays_flat_over_images_of_many_sizes(
    package: Path, backends: str, options: str, distinct: int
) -> None:
    pytest.importorskip("openvino")
    assert growth(IMAGES, package, backends, 300, distinct, options) <= SIZES_MB


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_memory_stays_flat_with_low_memory(package: Path, backend: str) -> None:
    """Each image opens its components again."""
    pytest.importorskip(backend)
    options = '{"low_memory": true}'
    assert growth(IMAGES, package, f'"{backend}"', 80, 80, options) <= SIZES_MB
