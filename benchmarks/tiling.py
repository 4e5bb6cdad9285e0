"""Peak memory of the VAE for 1024x1024 in tiles, and for 512x512 and 1024x1024 as a whole.

    python -m benchmarks.tiling [--package DIR] [--full-size] [--json FILE]

Without a package the demo model is exported. --full-size uses a VAE of SD 1.5's size with random
weights instead and needs about 10 GB of memory. Each figure is the peak resident memory of a new
process; `ratio` compares 1024 in tiles of 512 with 512 as a whole.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reports import show_and_save
from benchmarks.timing import environment

CASES = {"whole_512": (512, None), "tiled_1024": (1024, 512), "whole_1024": (1024, None)}


def measure(model: Path, kind: str, size: int, tile: int | None) -> dict[str, float]:
    """One run in this process; peak memory in MB, seconds, and the memory before the run."""
    from sdexport.engines import open_session
    from sdexport.runtime.images import vae
    from sdexport.runtime.images.pixels import to_uint8

    rng = np.random.default_rng(0)
    with open_session(model) as session:
        before = _peak()
        started = time.perf_counter()
        if kind == "decode":
            latents = rng.standard_normal((1, 4, size // 8, size // 8), dtype=np.float32)
            to_uint8(vae.decode(session, latents, tile=tile and tile // 8))
        else:
            pixels = rng.uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
            vae.encode(session, pixels, tile=tile)
        seconds = time.perf_counter() - started
    return {"peak_mb": _peak(), "before_mb": before, "seconds": round(seconds, 2)}


def _peak() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _apart(model: Path, kind: str, size: int, tile: int | None) -> Any:
    """`measure` in a new process."""
    command = [sys.executable, "-m", "benchmarks.tiling", "--one", str(model), kind]
    command += [str(size), str(tile or 0)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def run(package: Path) -> dict[str, Any]:
    report: dict[str, Any] = environment("numpy", "onnxruntime")
    for kind in ("decode", "encode"):
        model = package / f"vae_{kind}r" / "model.onnx"
        report[kind] = {
            name: _apart(model, kind, size, tile) for name, (size, tile) in CASES.items()
        }
        peaks = {name: report[kind][name]["peak_mb"] for name in CASES}
        report[kind]["ratio"] = round(peaks["tiled_1024"] / peaks["whole_512"], 3)
    return report


def full_size(folder: Path) -> Path:
    """Export encoder and decoder of SD 1.5's size with random weights."""
    import torch
    from diffusers import AutoencoderKL

    from sdexport.checkpoints.published_configs import VAE_SD
    from sdexport.graphs.trace import trace
    from sdexport.graphs.wrappers import vae_parts

    torch.manual_seed(0)
    module = AutoencoderKL.from_config(VAE_SD).eval().requires_grad_(False)
    for part in vae_parts(module.config):
        trace(part, module, folder / part.name / "model.onnx", opset=23)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.tiling")
    parser.add_argument("--package", type=Path)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        model, kind, size, tile = args.one
        print(json.dumps(measure(Path(model), kind, int(size), int(tile) or None)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        package = args.package or Path(scratch) / "package"
        if args.full_size:
            full_size(package)
        elif args.package is None:
            from sdexport.demo_model import MODEL_DIR
            from sdexport.exporter import export

            export(MODEL_DIR, package)
        report = run(package)
    show_and_save(report, args.json)


if __name__ == "__main__":
    main()
