"""Images of every model family compared with diffusers, exported in fp32 and in fp16.

    python -m benchmarks.families [--json FILE] [FAMILY...]

The checkpoints are small and random (tests/helpers/families.py). Time and memory are measured at
full size, by benchmarks.full_size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.reports import save
from sdexport import load_pipeline
from sdexport.exporter import export
from tests.helpers.diffusers_images import generate_with_diffusers, image_inputs
from tests.helpers.families import FAMILIES, build

PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "numpy")
ARGUMENTS: dict[str, Any] = {"prompt": "a large red circle", "num_inference_steps": 5}
SEED = 5


def measure(family: str) -> dict[str, Any]:
    """Largest differences of the images (of 255) and of the components (as in `verify`)."""
    arguments = (
        ARGUMENTS | image_inputs(family) | ({"strength": 0.7} if image_inputs(family) else {})
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = build(family, Path(scratch) / "checkpoint")
        expected = generate_with_diffusers(pipeline(checkpoint), SEED, **arguments).astype(int)
        for precision in ("fp32", "fp16"):
            package = Path(scratch) / precision
            verification = export(checkpoint, package, precision=precision).verification or {}
            with load_pipeline(package) as ours:
                generated = np.stack(ours(seed=SEED, **arguments).images).astype(int)
            rows = [v for k, v in verification.items() if not k.startswith("image.")]
            found[precision] = {
                "picture_of_255": int(np.abs(generated - expected).max()),
                "component_max_abs": max(r["max_abs"] for r in rows),
                "component_relative_l2": max(r["relative_l2"] for r in rows),
                "psnr_db": psnr(generated, expected),
            }
    return found


def pipeline(checkpoint: Path) -> Any:
    """The pipeline of diffusers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about configurations that diffusers calls outdated
        theirs: Any = diffusers.DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def psnr(a: np.ndarray, b: np.ndarray) -> float | None:
    """Decibels between images of 0..255; None if they are equal."""
    square = float(np.mean((a - b) ** 2.0))
    return round(10 * float(np.log10(255**2 / square)), 1) if square else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.families")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--json", type=Path, help="also write the report here")
    args = parser.parse_args()
    unknown = set(args.families) - set(FAMILIES)
    if unknown:
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    diffusers.utils.logging.set_verbosity_error()
    report: dict[str, Any] = {
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "arguments": ARGUMENTS,
        "families": {},
    }
    for family in args.families or FAMILIES:
        report["families"][family] = measure(family)
        print(family, json.dumps(report["families"][family]), flush=True)
    save(report, args.json)


if __name__ == "__main__":
    main()
