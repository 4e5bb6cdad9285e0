"""Accuracy of each precision: `python -m benchmarks.precision --work DIR --json FILE`.

The demo model is exported in every precision (packages that DIR contains already are used) and
generates images of the held-out prompts; so does its fp32 package with OpenVINO's lower-precision
arithmetic. The images are judged by image analysis and compared with those of the fp32 package.
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
"""Values of OpenVINO's option `precision`, with the fp32 package."""
TOOLS = ("onnxruntime", "openvino", "numpy")
IDENTICAL = 100.0
"""Decibels for two equal images."""


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
      work: folder with one package for each precision; missing ones are exported.
      prompts: number of held-out prompts.
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
        figures |= _compare_images(reference, folder, backend, schedulers, prompts)
        report["precisions"][precision] = figures
    report["arithmetic"] = {
        name: _compare_images(
            reference, work / "fp32", "openvino", schedulers, prompts, precision=name
        )
        for name in ARITHMETIC
    }
    return report


def _compare_images(
    reference: dict[str, list[np.ndarray]],
    folder: Path,
    backend: str,
    schedulers: Sequence[str],
    prompts: int,
    **options: Any,
) -> dict[str, Any]:
    """Share of correct images, and PSNR against the reference, which is the first call's images."""
    figures: dict[str, Any] = {}
    for scheduler in schedulers:
        shares, images = _images(folder, backend, scheduler, prompts, options)
        expected = reference.setdefault(scheduler, images)
        decibels = [psnr(a, b) for a, b in zip(expected, images, strict=True)]
        figures[scheduler] = shares | {
            "psnr_median": float(np.median(decibels)),
            "psnr_p05": float(np.percentile(decibels, 5)),
            "psnr_min": float(np.min(decibels)),
        }
    return figures


def _against_pytorch(folder: Path, backend: str) -> dict[str, Any]:
    """Size of the graphs, and the results of `verify`."""
    manifest = Package.load(folder).manifest
    checks = [check for check in verify(folder, backend) if check.output != "files"]
    graphs = sum(r.size for c in manifest.components.values() for r in c.files)
    *components, image = checks
    return {
        "backend": backend,
        "graphs_mb": graphs / 1e6,
        "relative_l2": {f"{c.name}.{c.output}": c.value("relative_l2") for c in components},
        "picture_rms_of_255": image.value("image_rms"),
        "passed": all(check.passed for check in checks),
        "nodes": {name: dict(c.nodes) for name, c in manifest.components.items()},
    }


def _images(
    folder: Path, backend: str, scheduler: str, count: int, options: dict[str, Any]
) -> tuple[dict[str, float], list[np.ndarray]]:
    images: list[np.ndarray] = []

    def keep(index: int, image: Image.Image, passed: bool) -> None:
        images.append(np.asarray(image))

    with load_pipeline(folder, backend, **options) as pipeline:
        shares = evaluate(pipeline, held_out_singles(count), scheduler, keep=keep)
    return shares, images


def psnr(expected: np.ndarray, actual: np.ndarray) -> float:
    """Decibels between two uint8 images, at most IDENTICAL."""
    noise = float(((expected.astype(float) - actual.astype(float)) ** 2).mean())
    return min(10 * math.log10(255**2 / noise), IDENTICAL) if noise else IDENTICAL


if __name__ == "__main__":
    main()
