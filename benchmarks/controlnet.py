"""What a ControlNet costs in a step: `python -m benchmarks.controlnet PACKAGE CONTROLNET`.

PACKAGE was exported with --controlnet-inputs, CONTROLNET by export-adapter. Calls of the UNet with
the inputs bound, as in a guided image, in turn: of the plain graph, of the graph that takes
residuals with a ControlNet, and of that graph alone, in a step in which no ControlNet runs.
Processor time does not depend on what else runs.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reports import save
from sdexport import ControlNet, Pipeline, load_pipeline
from sdexport.bench.measure import machine
from sdexport.engines import Session
from sdexport.runtime.adapters.applied_controlnets import AppliedControlNets
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.expected_calls import SHARED_INPUTS, STEP
from sdexport.runtime.images.control_images import ControlImages

PLAIN, WITH, BETWEEN = "plain", "with a ControlNet", "in a step without it"


def bound(pipe: Pipeline, session: Session, size: int, further: dict[str, np.ndarray]) -> Session:
    """The session with random constant inputs, for both halves of a guided image."""
    rng, cells = np.random.default_rng(0), size // pipe.package.manifest.downscale
    sizes = {"batch": 2, "height": cells, "width": cells, "sequence": 77}
    constants = {
        spec.name: rng.standard_normal(
            [sizes[each] if isinstance(each, str) else each for each in spec.shape]
        ).astype(spec.dtype)
        for spec in session.inputs
        if spec.name not in {"sample", "timestep", STEP, *further}
    }
    return session.bind(shared=SHARED_INPUTS, **constants, **further)


def measure(pipe: Pipeline, net: Path, size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds and processor seconds of a call, the smallest of each, and the ratio to plain."""
    image, name = np.zeros((size, size, 3), np.uint8), pipe.package.family.denoiser
    applied = AppliedControlNets(
        pipe._adapters,
        pipe.package,
        [ControlNet(net, image)],
        [ControlImages(image)],
        ControlledImages(1, size, size, range(1)),
    )
    controlled = applied.wrap(pipe.session(f"{name}.controlnet"))
    conditioning = applied.conditioning(guided=True)
    sessions = {
        PLAIN: bound(pipe, pipe.session(name), size, {}),
        WITH: bound(pipe, controlled, size, conditioning),
    }
    channels = pipe.session(name).inputs[0].shape[1]
    cells = size // pipe.package.manifest.downscale
    sample = np.random.default_rng(1).standard_normal((1, channels, cells, cells), np.float32)  # type: ignore[arg-type]
    feeds = {"sample": sample, "timestep": np.array([500], np.float32)}
    calls: dict[str, tuple[Session, dict[str, np.ndarray]]] = {
        PLAIN: (sessions[PLAIN], feeds),
        WITH: (sessions[WITH], {**feeds, STEP: np.array([0])}),
        BETWEEN: (sessions[WITH], {**feeds, STEP: np.array([1])}),
    }
    best = {each: [np.inf, np.inf] for each in calls}
    for _, (each, (session, inputs)) in itertools.product(range(repeats + 1), calls.items()):
        wall, used = time.perf_counter(), time.process_time()
        session.run(inputs)
        spent = time.perf_counter() - wall, time.process_time() - used
        best[each] = [min(pair) for pair in zip(best[each], spent, strict=True)]
    wall, used = best[PLAIN]
    return {
        each: {"s": one, "cpu_s": two, "ratio": one / wall, "cpu_ratio": two / used}
        for each, (one, two) in best.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("controlnet", type=Path)
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    options: dict[str, Any] = {"verify": False, "threads": args.threads}
    backends = {}
    for backend in args.backends:
        with load_pipeline(args.package, backend, **options) as pipe:
            backends[backend] = measure(pipe, args.controlnet, args.size, args.repeats)
        for name, call in backends[backend].items():
            print(f"{backend:12} {name:24} {call['s']:.3f} s, {call['cpu_s']:.3f} s of processor, ")
            print(f"{call['ratio']:.3f} and {call['cpu_ratio']:.3f} times the plain graph")
    settings = {name: getattr(args, name) for name in ("size", "threads", "repeats")}
    save({"machine": machine(), **settings, "backends": backends}, args.json)


if __name__ == "__main__":
    main()
