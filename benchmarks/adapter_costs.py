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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.controlnet import bound
from benchmarks.lora import BACKENDS
from benchmarks.reports import save
from sdexport import IPAdapter, Package, Pipeline, T2IAdapter, load_pipeline
from sdexport.bench.measure import machine
from sdexport.engines import Session
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
      pipe: whose package takes both kinds of adapters. t2i, ip: packages of adapters.
      size: of images, in pixels. repeats: of each call, after a first one.
    """

    def __init__(self, pipe: Pipeline, t2i: Path, ip: Path, size: int, repeats: int) -> None:
        self._pipe, self._t2i, self._ip = pipe, t2i, ip
        self._size, self._repeats = size, repeats
        self._image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)

    def steps(self, title: str) -> dict[str, dict[str, float]]:
        """Seconds and processor seconds of a call of the UNet, plain and with an adapter."""
        pipe, name = self._pipe, self._pipe.package.family.denoiser
        applied = self._applied(title)
        inputs = applied.conditioning(guided=True)
        adapted = applied.wrap(pipe.session(f"{name}.{applied.kind.value}"))
        sessions = {
            PLAIN: bound(pipe, pipe.session(name), self._size, {}),
            title: bound(pipe, adapted, self._size, inputs),
        }
        channels = pipe.session(name).inputs[0].shape[1]
        cells = self._size // pipe.package.manifest.downscale
        sample = np.random.default_rng(1).standard_normal((1, channels, cells, cells), np.float32)  # type: ignore[arg-type]
        feeds = {"sample": sample, "timestep": np.array([500], np.float32)}
        found = self._best({key: partial(each.run, feeds) for key, each in sessions.items()})
        plain = found[PLAIN]
        for one in found.values():
            one["ratio"], one["cpu_ratio"] = one["s"] / plain["s"], one["cpu_s"] / plain["cpu_s"]
        return found

    def once(self, backend: str, options: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Seconds and processor seconds of the graphs that run once for an image."""
        found: dict[str, dict[str, float]] = {}
        for folder in (self._t2i, self._ip):
            with AdapterSessions(Package.load(folder, verify=False), backend, options) as adapter:
                for component in adapter.package.manifest.components:
                    found |= self._single(component, adapter.session(component))
        name = SAFETY_CHECKER.name
        if name in self._pipe.package.manifest.components:
            found |= self._single(name, self._pipe.session(name))
        return found

    def _applied(self, title: str) -> AppliedT2IAdapters | AppliedIPAdapters:
        """An adapter, as a call of one image applies it."""
        call = ControlledImages(1, self._size, self._size, range(1), num_inference_steps=1)
        store, package = self._pipe._adapters, self._pipe.package
        if title == IP:
            return AppliedIPAdapters(store, package, [IPAdapter(self._ip, self._image)], call)
        adapters, images = [T2IAdapter(self._t2i, self._image)], [ControlImages(self._image)]
        return AppliedT2IAdapters(store, package, adapters, images, call)

    def _single(self, name: str, session: Session) -> dict[str, dict[str, float]]:
        sizes = {"batch": 1, "image_height": self._size, "image_width": self._size}
        rng = np.random.default_rng(2)
        feeds = {
            spec.name: rng.standard_normal([sizes.get(str(d), d) for d in spec.shape]).astype(
                spec.dtype
            )
            for spec in session.inputs
        }
        return self._best({name: partial(session.run, feeds)})

    def _best(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
        """The smallest seconds and processor seconds of each call, made in turn."""
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
        steps, once = {}, {}
        for title in (T2I, IP):  # one after the other: three graphs of SD 1.5 need much memory
            with load_pipeline(args.package, backend, verify=False, **options) as pipe:
                costs = Costs(pipe, args.t2i_adapter, args.ip_adapter, args.size, args.repeats)
                steps |= costs.steps(title)
        with load_pipeline(args.package, backend, verify=False, **options) as pipe:
            costs = Costs(pipe, args.t2i_adapter, args.ip_adapter, args.size, args.repeats)
            once = costs.once(backend, options)
        for title, call in {**steps, **once}.items():
            print(f"{backend:24} {title:24} {call['cpu_s']:.3f} s of processor ", end="")
            print(f"{call.get('cpu_ratio', np.nan):.3f} times plain", flush=True)
        backends[backend] = {"steps": steps, "once": once}
    settings = {name: getattr(args, name) for name in ("size", "threads", "repeats")}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    save({"machine": machine(), **settings, "load": load, "backends": backends}, args.json)


if __name__ == "__main__":
    main()
