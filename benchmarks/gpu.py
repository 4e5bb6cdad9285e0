"""Everything on an NVIDIA GPU in one go: what works, whether it is right, what it costs.

    python -m benchmarks.gpu --work DIR --json out.json [--budget 1500] [--models tiny sd15 sdxl]

Needs a machine with nothing but Python and the wheels (docs/engines.md says how to carry them):
the models are published architectures with seeded random weights, made, exported and built there.
Tasks come in the order of their worth, each is tried by itself, and the report is written after
each, so a lease that ends early has given what it could. A report that is there is continued.

For each model: package, engines, answers against PyTorch in float32 and float16, the UNet at its
own size, whole pictures; then text encoder, VAE and the other sizes; then torch.compile. Times of
sessions hold the copies from and to the host; PyTorch's inputs and results stay on the GPU. A time
counts only if the answer it belongs to was right.
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
"""What an answer must have with PyTorch's in float32 for its time to count; float16 inside."""
PICTURES = 3
Task = tuple[str, Callable[[], Any]]


class Bench:
    """Names every task, and what each does."""

    def __init__(self, args: argparse.Namespace, results: dict[str, Any]) -> None:
        self.args, self.results = args, results
        self.backends = [b for b in args.backends if b != COMPILED]
        self._peers: dict[str, Peers] = {}

    def blocks(self) -> Iterator[list[Task]]:
        """Tasks in the order of their worth; after a block the GPU is emptied."""
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
            yield self._pictures(model, steps, self.backends)

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
        yield self._pictures(
            model, 20 if 20 in model.steps else model.steps[-1], peers, "compiled."
        )

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
        """The session's behaviour on the UNet, with the time to open and to answer first."""
        peers = self.peers(model)
        feeds = peers.feeds("unet", 2, model.side)
        started = time.perf_counter()
        session, _ = peers.session("unet", backend)
        opened = time.perf_counter()
        first = session.run(feeds)
        answered = time.perf_counter()
        seconds = {"open_s": opened - started, "first_s": answered - opened}
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
            answer = peers.runner(TORCH, component, feeds).answers()
            expected, result = answer, {}
            found = tried(lambda: {"arrays": peers.reference(component, feeds)})
            if "error" in found:  # such as memory: then float16 is all there is to compare with
                result["fp32"] = found
            else:
                expected = found["arrays"]
            runners = {}
            for backend in backends:

                def check(backend: str = backend) -> Any:
                    runner = peers.runner(backend, component, feeds)
                    answers = runner.answers()
                    to_fp32 = compared(answers, expected)
                    if to_fp32["cosine"] >= COSINE:
                        runners[backend] = runner
                    return {"to_fp32": to_fp32, "to_torch": compared(answers, answer)}

                result[backend] = tried(check)
            rows = measure(
                runners, self.args.device, repeats=self.args.repeats, seconds=self.args.seconds
            )
            result["work"] = counted = cost(peers, component, feeds)
            for backend, row in rows.items():
                result[backend] |= row
                most = self.results.get("limits", {})
                if "flops_per_s" in most:
                    result[backend]["shares"] = shares(row, counted, most)
            return result

        return f"{model.name}.{component}.{kind}{batch}x{side}", work

    def _pictures(self, model: Model, steps: int, backends: Sequence[str], kind: str = "") -> Task:
        """Wall time of whole pictures, and how far each is from PyTorch's in steps of 255."""

        def work() -> Any:
            peers = self.peers(model)
            result: dict[str, Any] = {}
            expected: np.ndarray | None = None
            for backend in sorted(backends, key=lambda b: b != TORCH):

                def paint(backend: str = backend) -> Any:
                    painter = peers.painter(backend)
                    painter(model.steps[0], 0)
                    seconds = []
                    for i in range(PICTURES):
                        started = time.perf_counter()
                        picture = painter(steps, i + 1)
                        seconds.append(time.perf_counter() - started)
                    return {"seconds": seconds, "picture": picture}

                found = result[backend] = tried(paint)
                picture = found.pop("picture", None)
                if backend == TORCH:
                    expected = picture
                elif picture is not None and expected is not None:
                    away = np.abs(picture.astype(float) - expected)
                    found |= {"mean_of_255": away.mean(), "most_of_255": away.max()}
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
    """What a stage gives, or its error as text."""
    try:
        return stage()
    except Exception as error:  # noqa: BLE001  the report is of errors too
        last = traceback.format_exc().strip().splitlines()[-8:]
        text = " ".join(str(error).split())[:600]
        return {"error": f"{type(error).__name__}: {text}", "trace": last}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what is not done yet, as far as the budget goes; the report."""
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
    parser.add_argument("--json", type=Path, required=True, help="the report; continued if there")
    parser.add_argument("--work", type=Path, required=True, help="packages and engines; 25 GB")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["tiny", "sd15", "sdxl"])
    parser.add_argument("--backends", nargs="+", help="default: all that the device could run")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    parser.add_argument("--budget", type=float, default=1500.0, help="seconds; then nothing begins")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=6.0, help="at most, for one row")
    args = parser.parse_args(arguments)
    args.backends = args.backends or list(BACKENDS if args.device == "cuda" else ON_CPU)
    return args


def main() -> None:
    run(parse())


if __name__ == "__main__":
    main()
