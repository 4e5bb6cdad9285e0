"""Test and time everything on an NVIDIA GPU.

    python -m benchmarks.gpu --work DIR --json out.json [--budget 1500] [--models tiny sd15 sdxl]

Needs a machine with Python and the wheels only (docs/backends.md says how to bring them there): the
models are published architectures with seeded random weights, created, exported and built there.
The most useful tasks come first, a task that fails does not stop the others, and the report is
written after each task, so that little is lost if the machine is taken away. An existing report is
continued.

For each model: package, engines, outputs compared with PyTorch in float32 and float16, the UNet at
its default size, whole images; then text encoder, VAE and other sizes; then torch.compile. Times of
sessions include copies from and to the host; PyTorch's inputs and outputs stay on the GPU. An
output that is not correct is not timed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_checks import check_cuda, compared, contract
from benchmarks.gpu_models import MODELS, Model, checkpoint, write_package
from benchmarks.gpu_peers import COMPILED, TORCH, Peers
from benchmarks.gpu_timing import cost, limits, measure, shares
from benchmarks.reports import save
from sdexport import Package
from sdexport.builds.engine_builder import EngineSizes, build
from sdexport.builds.engine_builder import report as built_report
from sdexport.engines import PLAN_BACKENDS, cuda_device
from sdexport.engines.cache.profiles import Span

BACKENDS = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda", TORCH, COMPILED)
ON_CPU = ("onnxruntime", TORCH)
PACKAGES = (
    *("cuda-bindings", "diffusers", "numpy", "onnxruntime", "onnxruntime-gpu", "polygraphy"),
    *("tensorrt", "tensorrt-rtx", "torch", "transformers"),
)
COSINE = 0.999
"""Lowest cosine of an output (float16 inside) to PyTorch's in float32; below it no time counts."""
IMAGES = 3
Task = tuple[str, Callable[[], Any]]


class Bench:
    """The tasks: their names, and a function for each."""

    def __init__(self, args: argparse.Namespace, results: dict[str, Any]) -> None:
        self.args, self.results = args, results
        self.backends = [b for b in args.backends if b != COMPILED]
        self._peers: dict[str, Peers] = {}

    def blocks(self) -> Iterator[list[Task]]:
        """Tasks, the most useful first; GPU memory is freed after each block."""
        yield [("environment", environment), ("limits", lambda: limits(self.args.device))]
        if self.args.device == "cuda":
            yield [("cuda", check_cuda)]
        models = [MODELS[name] for name in self.args.models]
        for model in models:
            yield list(self._first(model))
        for model in models:
            yield list(self._rest(model))
        for model in models if COMPILED in self.args.backends else ():
            yield list(self._compiled(model))

    def close(self) -> None:
        for peers in self._peers.values():
            peers.close()

    def _first(self, model: Model) -> Iterator[Task]:
        name = model.name
        yield f"{name}.package", lambda: self._package(model)
        for backend in self.backends:
            if backend in PLAN_BACKENDS:
                yield f"{name}.build.{backend}", lambda b=backend: self._build(model, b)
        for backend in self.backends:
            if backend != TORCH:
                yield f"{name}.contract.{backend}", lambda b=backend: self._contract(model, b)
        yield self._timed(model, "unet", 2, model.side, self.backends)
        for steps in sorted(model.steps, key=lambda n: abs(n - 20)):
            yield self._images(model, steps, self.backends)

    def _rest(self, model: Model) -> Iterator[Task]:
        for component in ("text_encoder", "vae_decoder", "vae_encoder"):
            yield self._timed(model, component, 1, model.side, self.backends)
        for side in model.sides:
            for batch in model.batches:
                if (batch, side) != (2, model.side):
                    yield self._timed(model, "unet", batch, side, self.backends)

    def _compiled(self, model: Model) -> Iterator[Task]:
        peers = (TORCH, COMPILED)
        for component in ("unet", "vae_decoder", "text_encoder"):
            batch = 2 if component == "unet" else 1
            yield self._timed(model, component, batch, model.side, peers, "compiled.")
        yield self._images(model, 20 if 20 in model.steps else model.steps[-1], peers, "compiled.")

    def peers(self, model: Model) -> Peers:
        if model.name not in self._peers:
            work = self.args.work / model.name
            source = checkpoint(model, work / "checkpoint")
            self._peers[model.name] = Peers(
                model, source, work / "package", work / "engines", self.args.device
            )
        return self._peers[model.name]

    def _package(self, model: Model) -> Any:
        peers = self.peers(model)
        write_package(peers.source, peers.package, half=True)
        return {"bytes": Package.load(peers.package, verify=False).size}

    def _build(self, model: Model, backend: str) -> Any:
        sides, most = Span(model.sides[0], model.side, model.sides[-1]), max(model.batches) // 2
        sizes = EngineSizes(batch=Span(1, 1, max(most, 1)), height=sides, width=sides, static=True)
        peers = self.peers(model)
        package = Package.load(peers.package, verify=False)
        built = build(
            package, backend=backend, sizes=sizes, engine_dir=peers.engine_dir, rebuild_stale=True
        )
        return built_report(built)

    def _contract(self, model: Model, backend: str) -> Any:
        """The session contract on the UNet, with the time to open it and of the first call."""
        peers = self.peers(model)
        feeds = peers.feeds("unet", 2, model.side)
        started = time.perf_counter()
        session, _ = peers.session("unet", backend)
        opened = time.perf_counter()
        first = session.run(feeds)
        finished = time.perf_counter()
        seconds = {"open_s": opened - started, "first_s": finished - opened}
        return seconds | contract(session, feeds, first)

    def _timed(
        self,
        model: Model,
        component: str,
        batch: int,
        side: int,
        backends: Sequence[str],
        kind: str = "",
    ) -> Task:
        def work() -> Any:
            result: dict[str, Any]
            peers = self.peers(model)
            feeds = peers.feeds(component, batch, side)
            in_half = peers.runner(TORCH, component, feeds).outputs()
            expected, result = in_half, {}
            found = tried(lambda: {"arrays": peers.reference(component, feeds)})
            if "error" in found:  # such as too little memory: compare with float16
                result["fp32"] = found
            else:
                expected = found["arrays"]
            runners = {}
            for backend in backends:

                def check(backend: str = backend) -> Any:
                    runner = peers.runner(backend, component, feeds)
                    outputs = runner.outputs()
                    to_fp32 = compared(outputs, expected)
                    if to_fp32["cosine"] >= COSINE:
                        runners[backend] = runner
                    return {"to_fp32": to_fp32, "to_torch": compared(outputs, in_half)}

                result[backend] = tried(check)
            rows = measure(
                runners, self.args.device, repeats=self.args.repeats, seconds=self.args.seconds
            )
            result["work"] = counted = cost(peers, component, feeds)
            for backend, row in rows.items():
                result[backend] |= row
                limit = self.results.get("limits", {})
                if "flops_per_s" in limit:
                    result[backend]["shares"] = shares(row, counted, limit)
            return result

        return f"{model.name}.{component}.{kind}{batch}x{side}", work

    def _images(self, model: Model, steps: int, backends: Sequence[str], kind: str = "") -> Task:
        """Wall time of whole images, and their difference from PyTorch's, of 255."""

        def work() -> Any:
            peers = self.peers(model)
            result: dict[str, Any] = {}
            expected: np.ndarray | None = None
            for backend in sorted(backends, key=lambda b: b != TORCH):

                def time_images(backend: str = backend) -> Any:
                    generate = peers.image_function(backend)
                    generate(model.steps[0], 0)
                    seconds = []
                    for i in range(IMAGES):
                        started = time.perf_counter()
                        image = generate(steps, i + 1)
                        seconds.append(time.perf_counter() - started)
                    return {"seconds": seconds, "image": image}

                found = result[backend] = tried(time_images)
                image = found.pop("image", None)
                if backend == TORCH:
                    expected = image
                elif image is not None and expected is not None:
                    difference = np.abs(image.astype(float) - expected)
                    found |= {"mean_of_255": difference.mean(), "most_of_255": difference.max()}
            return result

        return f"{model.name}.picture.{kind}{steps}", work


def environment() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "gpu": tried(lambda: vars(cuda_device.gpu())),
        "driver": tried(lambda: cuda_device.call(cuda_device.runtime().cudaDriverGetVersion)),
        "python": platform.python_version(),
        "versions": versions,
    }


def tried(stage: Callable[[], Any]) -> Any:
    """The result of a stage, or its error as text."""
    try:
        return stage()
    except Exception as error:  # noqa: BLE001  the report includes errors
        last = traceback.format_exc().strip().splitlines()[-8:]
        text = " ".join(str(error).split())[:600]
        return {"error": f"{type(error).__name__}: {text}", "trace": last}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the tasks that are not in the report yet, within the budget; return the report."""
    results: dict[str, Any] = {}
    if args.json.is_file():
        results = json.loads(args.json.read_text(encoding="utf-8"))
    bench = Bench(args, results)
    end = time.monotonic() + args.budget
    for block in bench.blocks():
        for name, work in block:
            if name in results and "error" not in results[name]:
                continue
            if time.monotonic() > end:
                print(f"{name}: no time left")
                continue
            started = time.monotonic()
            results[name] = tried(work)
            seconds = time.monotonic() - started
            wrong = results[name].get("error", "") if isinstance(results[name], dict) else ""
            print(f"{name}: {seconds:.1f} s {wrong}", flush=True)
            save(results, args.json)
        bench.close()
    return results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.gpu",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", type=Path, required=True, help="the report; an existing one is continued"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for packages and engines; 25 GB"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["tiny", "sd15", "sdxl"])
    parser.add_argument("--backends", nargs="+", help="default: all that the device can run")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    parser.add_argument(
        "--budget", type=float, default=1500.0, help="seconds, after which no task is started"
    )
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=6.0, help="at most, for one row")
    args = parser.parse_args(arguments)
    args.backends = args.backends or list(BACKENDS if args.device == "cuda" else ON_CPU)
    return args


def main() -> None:
    run(parse())


if __name__ == "__main__":
    main()
