"""What image adapters and the safety checker cost: `python -m benchmarks.adapter_costs PACKAGE`.

PACKAGE was exported with --t2i-adapter-inputs and --ip-adapter-inputs, and holds a safety checker;
the adapters are packages of export-adapter. Calls of the UNet with the inputs bound, as in a guided
image, in turn: of the plain graph, and of those that take adapters. Then calls of the graphs that
run once for an image. Processor time does not depend on what else runs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.controlnet import bound
from benchmarks.lora import BACKENDS
from benchmarks.reports import save
from sdexport import IPAdapter, Package, Pipeline, T2IAdapter, load_pipeline
from sdexport.bench.measure import machine
from sdexport.runtime.adapters.adapter_sessions import AdapterSessions
from sdexport.runtime.adapters.applied_ip import AppliedIPAdapters
from sdexport.runtime.adapters.applied_t2i import AppliedT2IAdapters
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.images.control_images import ControlImages
from sdexport.runtime.models.components import SAFETY_CHECKER

PLAIN, T2I, IP = "plain", "with a T2I-Adapter", "with an IP-Adapter"


class Costs:
    """Measures a pipeline.

    Args:
      pipe: whose package takes both kinds of adapters. size: of images, in pixels.
      t2i, ip: packages of adapters. repeats: of each call, after a first one.
    """

    def __init__(self, pipe: Pipeline, t2i: Path, ip: Path, size: int, repeats: int) -> None:
        self._pipe, self._t2i, self._ip = pipe, t2i, ip
        self._size, self._repeats = size, repeats
        self._image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        self._call = ControlledImages(1, size, size, range(1), num_inference_steps=1)

    def steps(self) -> dict[str, dict[str, float]]:
        """Seconds and processor seconds of a call of the UNet, and their ratios to plain."""
        pipe, name = self._pipe, self._pipe.package.family.denoiser
        t2i = AppliedT2IAdapters(
            pipe._adapters,
            pipe.package,
            [T2IAdapter(self._t2i, self._image)],
            [ControlImages(self._image)],
            self._call,
        )
        ip = AppliedIPAdapters(
            pipe._adapters, pipe.package, [IPAdapter(self._ip, self._image)], self._call
        )
        sessions = {PLAIN: bound(pipe, pipe.session(name), self._size, {})}
        for title, applied in ((T2I, t2i), (IP, ip)):
            inputs = applied.conditioning(guided=True)
            session = applied.wrap(pipe.session(f"{name}.{applied.kind.value}"))
            sessions[title] = bound(pipe, session, self._size, inputs)
        channels = pipe.session(name).inputs[0].shape[1]
        cells = self._size // pipe.package.manifest.downscale
        sample = np.random.default_rng(1).standard_normal((1, channels, cells, cells), np.float32)  # type: ignore[arg-type]
        feeds = {"sample": sample, "timestep": np.array([500], np.float32)}
        found = self._best(
            {title: lambda session=each: session.run(feeds) for title, each in sessions.items()}
        )
        plain = found[PLAIN]
        return {
            title: {
                **one,
                "ratio": one["s"] / plain["s"],
                "cpu_ratio": one["cpu_s"] / plain["cpu_s"],
            }
            for title, one in found.items()
        }

    def once(self, backend: str, options: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Seconds and processor seconds of the graphs that run once for an image."""
        found: dict[str, dict[str, float]] = {}
        for folder in (self._t2i, self._ip):
            with AdapterSessions(Package.load(folder, verify=False), backend, options) as adapter:
                for component in adapter.package.manifest.components:
                    session = adapter.session(component)
                    feeds = self._random(session)
                    found |= self._best({component: lambda s=session, f=feeds: s.run(f)})
        name = SAFETY_CHECKER.name
        if name in self._pipe.package.manifest.components:
            session = self._pipe.session(name)
            feeds = self._random(session)
            found |= self._best({name: lambda: session.run(feeds)})
        return found

    def _random(self, session: Any) -> dict[str, np.ndarray]:
        sizes = {"batch": 1, "image_height": self._size, "image_width": self._size}
        return {
            spec.name: np.random.default_rng(2)
            .standard_normal([sizes.get(each, each) for each in spec.shape])
            .astype(spec.dtype)
            for spec in session.inputs
        }

    def _best(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
        best = {each: [np.inf, np.inf] for each in calls}
        for _, (each, call) in itertools.product(range(self._repeats + 1), calls.items()):
            wall, used = time.perf_counter(), time.process_time()
            call()
            spent = time.perf_counter() - wall, time.process_time() - used
            best[each] = [min(pair) for pair in zip(best[each], spent, strict=True)]
        return {each: {"s": wall, "cpu_s": used} for each, (wall, used) in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--t2i-adapter", type=Path, required=True)
    parser.add_argument("--ip-adapter", type=Path, required=True)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    options: dict[str, Any] = {"threads": args.threads}
    backends: dict[str, Any] = {}
    for backend in args.backends:
        with load_pipeline(args.package, backend, verify=False, **options) as pipe:
            costs = Costs(pipe, args.t2i_adapter, args.ip_adapter, args.size, args.repeats)
            backends[backend] = {"steps": costs.steps(), "once": costs.once(backend, options)}
        for part, calls in backends[backend].items():
            for title, call in calls.items():
                print(
                    f"{backend:24} {part:6} {title:24} {call['cpu_s']:.3f} s of processor", end=""
                )
                print(f", {call['cpu_ratio']:.3f} times the plain graph" * ("cpu_ratio" in call))
    settings = {name: getattr(args, name) for name in ("size", "threads", "repeats")}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    save({"machine": machine(), **settings, "load": load, "backends": backends}, args.json)


if __name__ == "__main__":
    main()
