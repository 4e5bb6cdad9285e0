"""Peak memory of an image with one component in memory at a time, and of each component alone.

    python -m benchmarks.low_memory PACKAGE [--side 512] [--backend NAME] [--json FILE]

Each is measured in its own process: every component, opened and run once for an image of that size;
a whole image (one step, with guidance) with `low_memory=True`; and one without. With `low_memory`
the peak should be that of the largest component alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reports import show_and_save
from sdexport.engines.process_memory import peak_mb
from sdexport.runtime.component_engines import open_component

WHOLE, LOW = "all components", "low_memory"


def run_alone(package: Path, what: str, side: int, backend: str) -> None:
    """Run one component or one image in this process."""
    from sdexport import Package, load_pipeline

    if what in (WHOLE, LOW):
        with load_pipeline(package, backend, verify=False, low_memory=what == LOW) as pipe:
            pipe(
                "a red circle",
                height=side,
                width=side,
                num_inference_steps=1,
                guidance_scale=7.5,
                seed=0,
            )
        return
    loaded = Package.load(package, verify=False)
    cells = side // loaded.manifest.downscale
    sizes = {"batch": 1 if what.startswith("vae") else 2, "sequence": 77}
    sizes |= {"height": cells, "width": cells, "image_height": side, "image_width": side}
    with open_component(loaded, what, backend) as session:
        shapes = {
            spec.name: (
                tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape),
                spec.dtype,
            )
            for spec in session.inputs
        }
        session.run({name: np.ones(shape, dtype) for name, (shape, dtype) in shapes.items()})


def measure(package: Path, side: int, backend: str = "onnxruntime") -> dict[str, Any]:
    """Peaks in MB, and the peak with low_memory as a share of the largest component's."""
    from sdexport import Package

    components = Package.load(package, verify=False).manifest.components
    used = [name for name in components if name != "vae_encoder"]
    peaks = {}
    for what in (*used, LOW, WHOLE):
        command = [sys.executable, "-m", "benchmarks.low_memory", package, "--side", side]
        command += ["--backend", backend, "--only", what]
        done = subprocess.run(
            list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True
        )
        peaks[what] = float(done.stdout)
    largest = max(peaks[name] for name in used)
    return {
        "side": side,
        "backend": backend,
        "peaks_mb": peaks,
        "low_memory_to_largest": round(peaks[LOW] / largest, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.low_memory")
    parser.add_argument("package", type=Path)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--only", help="run only this one and print its peak")
    parser.add_argument("--json", type=Path, help="also write the report here")
    args = parser.parse_args()
    if args.only:
        run_alone(args.package, args.only, args.side, args.backend)
        print(peak_mb())
        return
    show_and_save(measure(args.package, args.side, args.backend), args.json)


if __name__ == "__main__":
    main()
