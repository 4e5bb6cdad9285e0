"""TensorRT-RTX's engines of full-size models: build time, memory, size, fused attention. No GPU.

    python -m benchmarks.full_size_plans --package DIR [--write sd15|sdxl] --json FILE
                                         [--side N|N:N:N] [--batch N|N:N:N] [--weight-streaming]

Every component of the package is built in a process of its own. --write first writes the package,
of the published architecture with seeded random weights in fp16, if it is not there. Memory is the
peak of the process that builds; the weights of a large model are in a file of their own, which it
maps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu_models import MODELS, checkpoint, write_package
from benchmarks.plans import LIBRARY, summary
from benchmarks.reports import show_and_save
from sdexport import Package
from sdexport.builds.engine_builder import EngineSizes, build_engines
from sdexport.builds.layer_report import layer_report
from sdexport.engines.cache.profiles import Span
from sdexport.engines.trt.build_options import BuildOptions
from sdexport.engines.trt.engine_layers import layers_path


def build_component(
    package: Path, component: str, folder: Path, sizes: EngineSizes, options: BuildOptions
) -> dict[str, Any]:
    """Build one component and describe it; memory is that of the largest process that ended."""
    loaded = Package.load(package, verify=False)
    (engine,) = build_engines(
        loaded,
        backend="tensorrt-rtx",
        sizes=sizes,
        components=[component],
        engine_dir=folder,
        options=options,
    )
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    weights = sum(file.stat().st_size for file in (package / component).glob("model.onnx*"))
    report = layer_report({"backend": "tensorrt-rtx", "plan": str(engine.plan)})
    listed = layers_path(engine.plan).stat().st_size
    built = {"seconds": round(engine.seconds, 1), "bytes": engine.sidecar.size - listed}
    return {
        **summary({**built, **report}),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "graph_bytes": weights,
        "layers_bytes": listed,
    }


def measure(package: Path, arguments: list[str]) -> dict[str, Any]:
    """Every component of a package; each plan is deleted when it was measured."""
    report: dict[str, Any] = {"library": f"{LIBRARY.name} {LIBRARY.version()}"}
    report |= {"arguments": arguments, "components": {}}
    for component in Package.load(package, verify=False).manifest.components:
        command = [sys.executable, "-m", __spec__.name, "--package", str(package)]
        command += ["--component", component, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        report["components"][component] = json.loads(done.stdout)
        print(component, done.stdout.strip(), file=sys.stderr, flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.full_size_plans"
    )
    parser.add_argument("--package", type=Path, required=True, help="its folder")
    parser.add_argument("--write", choices=("sd15", "sdxl"), help="write it first")
    parser.add_argument("--side", type=Span.parse, default=Span(512, 512, 1024), help="pixels")
    parser.add_argument("--batch", type=Span.parse, default=Span(1, 1, 1), help="images")
    parser.add_argument("--weight-streaming", action="store_true")
    parser.add_argument("--component", help="only this one, for another process of this program")
    parser.add_argument("--json", type=Path, help="also write the report here")
    args = parser.parse_args()
    if args.write and not args.package.exists():
        with tempfile.TemporaryDirectory() as scratch:
            write_package(checkpoint(MODELS[args.write], Path(scratch)), args.package, half=True)
    sizes = EngineSizes(args.batch, args.side, args.side, static=True)
    if args.component:
        options = BuildOptions(weight_streaming=args.weight_streaming)
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            found = build_component(args.package, args.component, Path(folder), sizes, options)
        print(json.dumps(found))
        return
    arguments = ["--side", str(args.side), "--batch", str(args.batch)]
    if args.weight_streaming:
        arguments.append("--weight-streaming")
    show_and_save(measure(args.package, arguments) | {"model": args.write}, args.json)


if __name__ == "__main__":
    main()
