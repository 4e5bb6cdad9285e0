"""Runs the calls of benchmarks.speed_check with the sdexport of one source tree.

    PYTHONPATH=TREE python -P speed_worker.py TREE

Reads lines of JSON, {"name": ..., "calls": ..., "slower": 1}, and answers with {"ns": ...}, the
processor time of a call, or with {"error": ...}. Everything that is timed runs in this thread.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: `benchmarks`, not sdexport

SHAPE = (1, 4, 64, 64)
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPT = "a very large red circle to the left of a small blue star on a white background"
STEPS = 20
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
SCHEDULERS = ("ddim", "lms", "euler", "dpmsolver++")
Call = Callable[[], object]


def scheduler(name: str) -> Call:
    """A whole run, creating the scheduler included."""
    from sdexport.runtime import schedulers

    latents, noise_pred = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)

    def run() -> None:
        sampler, sample = schedulers.create(name, CONFIG, STEPS), latents
        for i in range(len(sampler.timesteps)):
            scaled = sampler.scale_model_input(sample, i)
            sample = sampler.step(noise_pred, i, scaled).prev_sample

    return run


def tokenizer(tree: Path, *, known: bool) -> Call:
    from sdexport import ClipTokenizer

    encode = ClipTokenizer.from_folder(tree / "sdexport" / "demo_model" / "model" / "tokenizer")
    numbers = itertools.count()
    return lambda: encode([PROMPT if known else f"{PROMPT} of number{next(numbers)}"])


def noise(*, compiled: bool) -> Call:
    from sdexport import TorchGenerator
    from sdexport.runtime.noise import _noise_numpy, torch_generator

    if compiled and torch_generator.source is _noise_numpy:
        raise RuntimeError("no compiled noise")
    usual = torch_generator.source
    torch_generator.source = usual if compiled else _noise_numpy
    try:
        generator = TorchGenerator(0)
    finally:
        torch_generator.source = usual
    return lambda: generator.randn(SHAPE)


def image(package: Any) -> Call:
    """The pipeline with sessions that return at once."""
    from benchmarks.scaling import instant

    pipe = instant(package)
    arguments: dict[str, Any] = {"num_inference_steps": STEPS, "scheduler": "ddim", "seed": 0}
    arguments |= {"width": 512, "height": 512, "guidance_scale": 7.5}
    return lambda: pipe("a red circle", **arguments)


def component(package: Any, name: str) -> Call:
    """A component in ONNX Runtime, one thread, on the reference inputs."""
    from sdexport.engines import open_session

    with np.load(package.folder / "reference" / f"{name}.npz") as data:
        feeds = {k.removeprefix("input."): v for k, v in data.items() if k.startswith("input.")}
    session = open_session(package.model_path(name), threads=1)
    return lambda: session.run(feeds)


def convolution(folder: Path) -> Call:
    from benchmarks import convolution_graphs
    from sdexport.engines import open_session

    _, winograd, feeds = convolution_graphs.write(folder)
    session = open_session(winograd, threads=1)
    return lambda: session.run(feeds)


def calls(tree: Path, scratch: Path) -> dict[str, Callable[[], Call]]:
    """What is timed, by name: each a function that makes the call."""

    def package() -> Any:
        from sdexport import Package

        return Package.load(tree / "sdexport" / "demo_model" / "package", verify=False)

    return {
        **{f"scheduler {name}": lambda name=name: scheduler(name) for name in SCHEDULERS},
        "tokenizer, known words": lambda: tokenizer(tree, known=True),
        "tokenizer, new words": lambda: tokenizer(tree, known=False),
        "noise": lambda: noise(compiled=True),
        "noise in NumPy": lambda: noise(compiled=False),
        "image without engines": lambda: image(package()),
        **{name: lambda name=name: component(package(), name) for name in COMPONENTS},
        "Winograd convolution": lambda: convolution(scratch),
    }


def reject_foreign(tree: Path) -> None:
    """Raises: RuntimeError: a module of sdexport is not this tree's but an installed one."""
    ours = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "sdexport"}
    for name, module in ours.items():
        file = getattr(module, "__file__", None)
        if file and not Path(file).resolve().is_relative_to(tree.resolve()):
            raise RuntimeError(f"{name} is {file}, which is not in {tree}")


def timed(call: Call, count: int, slower: float) -> float:
    """Processor time of a call in ns, over `count` of them; `slower` prolongs each by a factor."""
    started = time.thread_time_ns()
    for _ in range(count):
        began = time.thread_time_ns()
        call()
        if slower > 1:
            end = began + slower * (time.thread_time_ns() - began)
            while time.thread_time_ns() < end:
                pass
    return (time.thread_time_ns() - started) / count


def main() -> None:
    tree = Path(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):  # both workers on one core, so that they share its luck
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        known, made = calls(tree, Path(scratch)), dict[str, Call]()
        for line in sys.stdin:
            name, count, slower = (json.loads(line)[key] for key in ("name", "calls", "slower"))
            try:
                if name not in made:
                    made[name] = known[name]()
                    timed(made[name], 3, 1.0)
                    reject_foreign(tree)
                answer: dict[str, Any] = {"ns": timed(made[name], count, slower)}
            except Exception as error:  # noqa: BLE001  an earlier tree may lack anything
                answer = {"error": f"{type(error).__name__}: {error}"[:200]}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
