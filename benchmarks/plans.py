"""Which graphs TensorRT-RTX builds, and how much of their attention becomes one kernel. No GPU.

    python -m benchmarks.plans [--json FILE] [FAMILY...]

Small random models (tests/helpers/families.py): every family, precision and opset, for the compute
capabilities 8.6, 8.9 and 12.0, with a profile of fixed sizes and a dynamic one. A report that is
there is continued. Full-size models: benchmarks.full_size_plans.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reports import read, save
from sdexport.builds.layer_report import profile_reports
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines.cache.profiles import Profile, Span, dimension_names, input_shapes
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.trt.build_options import BuildOptions
from sdexport.engines.trt.build_worker import build
from sdexport.engines.trt.engine_layers import EngineLayers, layers_path
from sdexport.engines.trt.library import LIBRARIES
from sdexport.engines.worker_process import run_in_worker
from sdexport.graphs.precision import PRECISIONS, check_precision, conversion
from sdexport.graphs.trace import trace
from sdexport.graphs.wrappers import parts
from tests.helpers.families import FAMILIES
from tests.helpers.families import build as write_checkpoint
from tests.helpers.traces import shared_traces

LIBRARY = LIBRARIES["tensorrt-rtx"]
CAPABILITIES = ("8.6", "8.9", "12.0")
OPSETS = (23, 18)
SIZES: Profile = {
    "batch": Span(1, 2, 4),
    "sequence": Span(77, 77, 77),
    "height": Span(8, 16, 24),
    "width": Span(8, 16, 24),
    "image_height": Span(64, 128, 192),
    "image_width": Span(64, 128, 192),
}
"""Of the dynamic profile; the other one has its best sizes alone."""


def build_small(
    onnx: Path,
    folder: Path,
    capabilities: Sequence[str] = CAPABILITIES,
    *,
    static_only: bool = False,
    in_process: bool = False,
) -> dict[str, Any]:
    """Build one graph.

    Args:
      folder: for the plan.
      static_only: leave out the dynamic profile.
      in_process: build in this process, which saves the start of another one. It must not have used
        TensorRT or Polygraphy before: both keep their first logger and settings.
    Returns: seconds, bytes of the plan and profiles (see layer_report.profile_reports); or failed
      and message, as the build worker has them.
    """
    inputs, _ = graph_specs(onnx)
    dynamic = {name: SIZES[name] for name in dimension_names(inputs)}
    static = {name: Span(span.opt, span.opt, span.opt) for name, span in dynamic.items()}
    profiles = [static] if static_only else [static, dynamic]
    plan = folder / f"{onnx.parent.name}.plan"
    job = {
        "module": LIBRARY.module,
        "onnx": str(onnx),
        "plan": str(plan),
        "profiles": [{s.name: input_shapes(s, p) for s in inputs} for p in profiles],
        "options": BuildOptions(compute_capabilities=tuple(capabilities)).key(),
        "timing_cache": None,
    }
    started = time.perf_counter()
    if in_process:
        result = build(job, lambda *event, **details: None)
    else:
        result = run_in_worker(build.__module__, "build", {"job": job})
    if "failed" in result:
        return result
    path = layers_path(plan)
    found = EngineLayers.from_json(path.read_bytes(), path)
    seconds = round(time.perf_counter() - started, 2)
    return {"seconds": seconds, **result, "profiles": profile_reports(found)}


def summary(built: dict[str, Any]) -> dict[str, Any]:
    """What the report keeps of a build: attention and reformatting layers of each profile."""
    if "failed" in built:
        return built
    profiles = [
        {
            "layers": profile["layers"],
            "reformatting": profile["kinds"].get("reformatting", 0),
            **profile["attention"],
            "reasons": dict(Counter(each["reason"] for each in profile["separate"])),
        }
        for profile in built["profiles"]
    ]
    return {"seconds": built["seconds"], "bytes": built["bytes"], "profiles": profiles}


def measure(family: str) -> dict[str, Any]:
    """The builds of a family by "PRECISION, opset N" and component."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, shared_traces():
        folder = Path(scratch)
        checkpoint = Checkpoint.open(write_checkpoint(family, folder / "checkpoint"))
        load = functools.cache(checkpoint.load)
        for opset in OPSETS:
            for precision in PRECISIONS:
                try:
                    check_precision(precision, opset)
                except InvalidArgumentError:
                    continue
                built = found.setdefault(f"{precision}, opset {opset}", {})
                for part in parts(checkpoint.configs):
                    config = checkpoint.configs[part.source]
                    change = conversion(precision, part.component, checkpoint.family, config)
                    path = folder / part.name / "model.onnx"
                    trace(part, load(part.source), path, opset=opset, change=change)
                    built[part.name] = summary(build_small(path, folder, in_process=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.plans")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--json", type=Path, required=True, help="the report")
    args = parser.parse_args()
    unknown = set(args.families) - set(FAMILIES)
    if unknown:
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    report = read(args.json) or {"families": {}}
    report |= {"library": f"{LIBRARY.name} {LIBRARY.version()}", "capabilities": CAPABILITIES}
    for family in args.families or FAMILIES:
        if family not in report["families"]:
            report["families"][family] = measure(family)
            save(report, args.json)
            print(family, flush=True)


if __name__ == "__main__":
    main()
