"""Full-size files in the original layout: every weight has a place, and only one copy of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file

from sdexport.checkpoints.published_configs import FAMILIES, SingleFileFamily
from tests.helpers.original_layout import original_layout

# Measures memory of its own alone: pages of the mapped file can be given back at any time.
SCRIPT = """
import json, re, sys, threading, time
from sdexport.checkpoints.single_file import SingleFile

def own():
    text = open("/proc/self/status").read()
    return int(re.search(r"RssAnon:\\s+(\\d+)", text)[1]) * 1024

opened = SingleFile.open(sys.argv[1])
before, peak, done = own(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, own())
        time.sleep(0.01)
thread = threading.Thread(target=watch)
thread.start()
started = time.perf_counter()
unet = opened.load("unet")
seconds = time.perf_counter() - started
done = True
thread.join()
weights = sum(p.numel() * 4 for p in unet.parameters())
print(json.dumps({"family": opened.family.name, "weights": weights, "peak": peak - before,
                  "seconds": seconds}))
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "model.safetensors"
    (tmp_path / "model.safetensors").unlink(missing_ok=True)


def write(path: Path, family: SingleFileFamily, dtype: torch.dtype) -> None:
    """Random weights of a family's real shapes."""
    with torch.device("meta"):
        modules = {
            part: getattr(transformers, t.class_name)(transformers.CLIPTextConfig(**t.config))
            for part, t in family.text_encoders.items()
        }
        modules["unet"] = diffusers.UNet2DConditionModel(**family.unet)
        modules["vae"] = diffusers.AutoencoderKL(**family.vae)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(value.shape, dtype=dtype).uniform_(-0.05, 0.05, generator=generator)
        for name, value in original_layout(family, modules).items()
    }
    save_file(tensors, path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_sd15_loads_with_one_copy_of_the_unet(dtype: torch.dtype, file: Path) -> None:
    write(file, FAMILIES[0], dtype)
    command = [sys.executable, "-c", SCRIPT, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    print(report)  # noqa: T201
    assert report["family"] == "Stable Diffusion 1" and report["weights"] == 859_520_964 * 4
    assert report["peak"] < 1.2 * report["weights"]
