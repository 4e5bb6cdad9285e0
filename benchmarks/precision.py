"""What each precision costs: `python -m benchmarks.precision --work DIR --json FILE`.

The embedded model is exported in every precision (packages that are in DIR already are taken) and
paints the held-out prompts; so does its fp32 package with OpenVINO's lower arithmetic. The pictures
are judged by image analysis and compared with those of the fp32 package.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.reports import show_and_save
from sdexport import Package, load_pipeline
from sdexport.demo_model import MODEL_DIR
from sdexport.demo_model.evaluate import GUIDANCE_SCALE, SINGLES, STEPS, evaluate, held_out_singles
from sdexport.exporter import export
from sdexport.graphs.precision import PRECISIONS, verifying_backends
from sdexport.verification.verifier import verify

SCHEDULERS = ("lms", "ddim")
ARITHMETIC = ("bf16", "i8")
"""Of OpenVINO's sessions, over the fp32 package."""
TOOLS = ("onnxruntime", "openvino", "numpy")
IDENTICAL = 100.0
"""Decibels that stand for two equal pictures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.precision")
    parser.add_argument("--work", type=Path, help="folder for the packages")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--prompts", type=int, default=SINGLES)
    parser.add_argument("--scheduler", action="append", choices=SCHEDULERS, help="all by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = run(args.work or Path(scratch), args.prompts, args.scheduler or SCHEDULERS)
    show_and_save(report, args.json)


def run(
    work: Path, prompts: int = SINGLES, schedulers: Sequence[str] = SCHEDULERS
) -> dict[str, Any]:
    """Figures of every precision, fp32 first.

    Args:
      work: holds a package for each precision, or gets it.
      prompts: how many held-out prompts are painted.
    """
    reference: dict[str, list[np.ndarray]] = {}
    report: dict[str, Any] = {
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "prompts": prompts,
        "tools": {name: metadata.version(name) for name in TOOLS},
        "precisions": {},
    }
    for precision in PRECISIONS:
        folder = work / precision
        if not folder.exists():
            export(MODEL_DIR, folder, precision=precision)
        backend = verifying_backends(precision)[0]
        figures = _against_pytorch(folder, backend)
        figures |= _beside(reference, folder, backend, schedulers, prompts)
        report["precisions"][precision] = figures
    report["arithmetic"] = {
        name: _beside(reference, work / "fp32", "openvino", schedulers, prompts, precision=name)
        for name in ARITHMETIC
    }
    return report


def _beside(
    reference: dict[str, list[np.ndarray]],
    folder: Path,
    backend: str,
    schedulers: Sequence[str],
    prompts: int,
    **options: Any,
) -> dict[str, Any]:
    """What the pictures show, and how far they are from the reference's, which are the first."""
    figures: dict[str, Any] = {}
    for scheduler in schedulers:
        shares, pictures = _painted(folder, backend, scheduler, prompts, options)
        beside = reference.setdefault(scheduler, pictures)
        decibels = [psnr(a, b) for a, b in zip(beside, pictures, strict=True)]
        figures[scheduler] = shares | {
            "psnr_median": float(np.median(decibels)),
            "psnr_p05": float(np.percentile(decibels, 5)),
            "psnr_min": float(np.min(decibels)),
        }
    return figures


def _against_pytorch(folder: Path, backend: str) -> dict[str, Any]:
    """Sizes, and the recorded answers replayed."""
    manifest = Package.load(folder).manifest
    checks = [check for check in verify(folder, backend) if check.metric != "files"]
    graphs = sum(r.size for c in manifest.components.values() for r in c.files)
    *components, picture = checks
    return {
        "backend": backend,
        "graphs_mb": graphs / 1e6,
        "cosine": {f"{check.name}.{check.output}": check.cosine for check in components},
        "picture": {"metric": picture.metric, "value": picture.error},
        "passed": all(check.passed for check in checks),
        "nodes": {name: dict(c.nodes) for name, c in manifest.components.items()},
    }


def _painted(
    folder: Path, backend: str, scheduler: str, count: int, options: dict[str, Any]
) -> tuple[dict[str, float], list[np.ndarray]]:
    pictures: list[np.ndarray] = []

    def keep(index: int, image: Image.Image, passed: bool) -> None:
        pictures.append(np.asarray(image))

    with load_pipeline(folder, backend, **options) as pipeline:
        shares = evaluate(pipeline, held_out_singles(count), scheduler, keep=keep)
    return shares, pictures


def psnr(expected: np.ndarray, actual: np.ndarray) -> float:
    """Decibels between two uint8 pictures, at most IDENTICAL."""
    noise = float(((expected.astype(float) - actual.astype(float)) ** 2).mean())
    return min(10 * math.log10(255**2 / noise), IDENTICAL) if noise else IDENTICAL


if __name__ == "__main__":
    main()
