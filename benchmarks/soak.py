"""Memory over many images of varying sizes, and files that many write and read at once.

    python -m benchmarks.soak [--images 300] [--largest 208] [--only NAME] [--json FILE]

Each backend and mode generates its images with the demo model in a process of its own, with one
thread; the figures are of resident memory after the first quarter of the images and at the end.
Linux alone; half an hour of one core. Rows of an earlier report that are not measured are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import concurrency
from benchmarks.reports import save
from sdexport.builds.engine_builder import build
from sdexport.demo_model import PACKAGE_DIR

RESULT = Path(__file__).parent / "results" / "soak.json"
MIXED = {"unet": "openvino", "*": "onnxruntime"}
PREPARED = "prepared graphs"
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("onnxruntime", "plain", {}),
    ("onnxruntime", PREPARED, {}),
    ("onnxruntime", "low memory", {"options": {"low_memory": True}}),
    ("onnxruntime", "tiles", {"options": {"vae_tile": 64}}),
    ("openvino", "plain", {}),
    ("openvino", "precision=bf16", {"options": {"precision": "bf16"}}),
    ("openvino", "low memory", {"options": {"low_memory": True}}),
    ("openvino", "tiles", {"options": {"vae_tile": 64}}),
    ("openvino, 40 sizes", "plain", {"sizes": 40}),
    ("openvino UNet, else onnxruntime", "plain", {"backends": MIXED}),
    ("openvino UNet, else onnxruntime", "low memory",
     {"backends": MIXED, "options": {"low_memory": True}}),
]  # fmt: skip
"""Backend, mode, and what differs from the defaults of `soak`."""


def soak(package: Path, images: int, largest: int, what: dict[str, Any]) -> dict[str, Any]:
    """Resident memory over many images, in MB."""
    started = time.perf_counter()
    request = {"options": {}, "call": {}, "images": images, "sizes": images, "largest": largest}
    command = [sys.executable, "-m", "benchmarks.soak_images", str(package)]
    done = subprocess.run(
        [*command, json.dumps(request | what)], check=True, capture_output=True, text=True
    )
    done_on = json.loads(done.stdout.splitlines()[-1])
    found = done_on["resident_mb"]
    quarter = len(found) // 4
    slope = statistics.linear_regression(range(quarter, len(found)), found[quarter:]).slope
    return {
        "images": len(found),
        "sizes": done_on["sizes"],
        "first_mb": found[0],
        "quarter_mb": found[quarter - 1],
        "last_mb": found[-1],
        "largest_mb": max(found),
        "growth_mb": found[-1] - found[quarter - 1],
        "kb_per_image": 1024 * slope,
        "seconds": time.perf_counter() - started,
    }


def run(images: int, largest: int, only: str, path: Path) -> None:
    """Run the cases whose name contains `only`, and write the report after each of them."""
    report: dict[str, Any] = {"memory": {}, "concurrency": {}}
    if path.is_file():
        report |= json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="sdexport-soak-") as folder:
        built = shutil.copytree(PACKAGE_DIR, Path(folder) / "package")
        build(built)
        for backend, mode, further in CASES:
            name = f"{backend}: {mode}"
            if only not in name:
                continue
            sys.stderr.write(f"{name}\n")
            where = built if mode == PREPARED else PACKAGE_DIR
            what = {"backends": backend.partition(",")[0], **further}
            figures = soak(where, images, largest, what)
            report["memory"][name] = {"backend": backend, "mode": mode, **figures}
            save(report, path)
    for name, measure in concurrency.CASES.items():
        if only in name:
            sys.stderr.write(f"{name}\n")
            report["concurrency"][name] = measure()
            save(report, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--largest", type=int, default=208, help="width and height in pixels")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    run(arguments.images, arguments.largest, arguments.only, arguments.json)


if __name__ == "__main__":
    main()
