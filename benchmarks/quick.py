"""Check for slowdowns: ratios against a reference in the same run, in two minutes.

    python -m benchmarks.quick [--json FILE]

Both sides run in turn in this thread, whose CPU time is measured, so that a busy machine matters
little; the fastest of many runs counts. Absolute times are meaningless here.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from benchmarks import convolution_graphs
from benchmarks.noise import in_numpy
from benchmarks.reports import save
from benchmarks.scaling import LIMIT, SWEEPS, instant, sweep
from sdexport import ClipTokenizer, Package, TorchGenerator
from sdexport.demo_model import MODEL_DIR
from sdexport.engines import open_session
from sdexport.runtime import schedulers
from sdexport.runtime.noise import _noise_numpy, torch_generator

BOUNDS = {
    "scheduler ddim": 0.45,
    "scheduler lms": 0.06,
    "scheduler euler": 0.45,
    "scheduler dpmsolver++": 0.4,
    "tokenizer, known words": 0.45,
    "tokenizer, new words": 0.8,
    "noise": 0.7,
    "noise in NumPy": 2.2,
    "image without engines": 4.0,
    "text_encoder": 1.0,
    "unet": 0.9,
    "vae_decoder": 1.4,
    "Winograd convolution": 0.9,
}
"""Our time over the reference's, about twice the measured ratios: 0.02 (LMS) to 1.5 (noise in
NumPy; everything else is faster than its reference). The bare arithmetic that the pipeline is
compared with takes 2 to 6 ms, depending on the allocator: ratios of 1.1 to 2.5."""
SHAPE = (1, 4, 64, 64)
STEPS = 20
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPT = "a very large red circle to the left of a small blue star on a white background"
Calls = tuple[Callable[[], object], Callable[[], object]]


@dataclass(frozen=True)
class Ratio:
    """A ratio and its bound; ours, reference: CPU seconds of the fastest run."""

    name: str
    ours: float
    reference: float
    bound: float

    @property
    def ratio(self) -> float:
        return self.ours / self.reference

    @property
    def passed(self) -> bool:
        return self.ratio <= self.bound

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "SLOW"
        return f"{self.name:30} {self.ratio:6.2f} of the reference, at most {self.bound} {verdict}"


def ratio(name: str, calls: Calls, repeats: int = 40) -> Ratio:
    """Time both in turn, after three warm-up runs of each."""
    best = [float("inf"), float("inf")]
    for number in range(repeats + 3):
        for side, call in enumerate(calls):
            started = time.thread_time()
            call()
            elapsed = time.thread_time() - started
            if number >= 3:
                best[side] = min(best[side], elapsed)
    return Ratio(name, *best, BOUNDS[name])


def scheduler_calls(name: str) -> Calls:
    """A whole run, creating the scheduler included."""
    import torch

    from tests.helpers.diffusers_schedulers import build_twin

    arrays = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    tensors = torch.from_numpy(arrays)

    def ours() -> None:
        sampler, sample = schedulers.create(name, CONFIG, STEPS), arrays[0]
        for i in range(len(sampler.timesteps)):
            sample = sampler.step(arrays[1], i, sampler.scale_model_input(sample, i)).prev_sample

    def theirs() -> None:
        twin, options = build_twin(name, CONFIG, STEPS, {})
        sample = tensors[0]
        for timestep in twin.timesteps:
            scaled = twin.scale_model_input(sample, timestep)
            sample = twin.step(tensors[1], timestep, scaled, **options).prev_sample

    return ours, theirs


def tokenizer_calls(*, known: bool) -> Calls:
    from transformers import CLIPTokenizer

    folder = MODEL_DIR / "tokenizer"
    ours, theirs = ClipTokenizer.from_folder(folder), CLIPTokenizer.from_pretrained(folder)

    def rows() -> Any:
        return theirs([PROMPT], padding="max_length", max_length=77, truncation=True).input_ids

    def encode() -> Any:
        if not known:
            ours._words.clear()
        return ours([PROMPT])

    if encode().tolist() != rows():
        raise RuntimeError("the tokenizers give different ids")
    return encode, rows


def noise_calls(ours: TorchGenerator) -> Calls:
    import torch

    theirs = torch.Generator().manual_seed(0)
    return (
        lambda: ours.randn(SHAPE),
        lambda: torch.randn(SHAPE, generator=theirs),
    )


def image_calls(package: Package) -> Calls:
    """The pipeline with sessions that return at once, and the bare arithmetic of its steps."""
    pipe = instant(package)
    arguments: dict[str, Any] = {"num_inference_steps": STEPS, "scheduler": "ddim", "seed": 0}
    arguments |= {"width": 512, "height": 512, "guidance_scale": 7.5}
    rng = np.random.default_rng(0)

    def bare() -> Any:
        latents = rng.standard_normal(SHAPE, np.float32)
        for _ in range(STEPS):
            uncond, text = np.concatenate([latents, latents]) * np.float32(0.1)
            noise_pred = uncond + np.float32(7.5) * (text - uncond)
            clean = (latents - np.float32(0.6) * noise_pred) / np.float32(0.8)
            latents = np.float32(0.7) * clean + np.float32(0.7) * noise_pred
        pixels = np.full((1, 3, 512, 512), 0.1, np.float32)
        return ((pixels / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)

    return lambda: pipe("a red circle", **arguments), bare


@contextmanager
def component_calls(package: Package, name: str) -> Iterator[Calls]:
    """A component in ONNX Runtime and in PyTorch, one thread each, on the reference inputs."""
    import torch

    from sdexport.checkpoints.diffusers_folder import Checkpoint
    from sdexport.graphs.wrappers import parts
    from sdexport.verification.reference import TorchSession

    with np.load(package.folder / "reference" / f"{name}.npz") as data:
        feeds = {k.removeprefix("input."): v for k, v in data.items() if k.startswith("input.")}
    checkpoint = Checkpoint.open(MODEL_DIR)
    part = next(p for p in parts(checkpoint.configs) if p.name == name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reference = TorchSession(part, checkpoint.load(part.source))
        with open_session(package.model_path(name), threads=1) as session:
            yield lambda: session.run(feeds), lambda: reference.run(feeds)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def winograd_calls(folder: Path) -> Iterator[Calls]:
    """A 3x3 convolution as in prepared graphs and as in ONNX Runtime, one thread each."""
    direct, winograd, feeds = convolution_graphs.write(folder)
    with (
        open_session(winograd, threads=1) as ours,
        open_session(direct, threads=1) as reference,
    ):
        yield lambda: ours.run(feeds), lambda: reference.run(feeds)


def run(package: Package, scratch: Path) -> list[Ratio]:
    found = []
    for name in ("ddim", "lms", "euler", "dpmsolver++"):
        found.append(ratio(f"scheduler {name}", scheduler_calls(name), 20))
    found.append(ratio("tokenizer, known words", tokenizer_calls(known=True)))
    found.append(ratio("tokenizer, new words", tokenizer_calls(known=False)))
    if torch_generator.source is not _noise_numpy:
        found.append(ratio("noise", noise_calls(TorchGenerator(0))))
    found.append(ratio("noise in NumPy", noise_calls(in_numpy())))
    found.append(ratio("image without engines", image_calls(package), 15))
    for name in ("text_encoder", "unet", "vae_decoder"):
        with component_calls(package, name) as calls:
            found.append(ratio(name, calls, 15))
    with winograd_calls(scratch) as calls:
        found.append(ratio("Winograd convolution", calls, 15))
    return found


def growth(package: Package) -> dict[str, dict[str, float]]:
    """Exponents of time and memory outside the engines; see benchmarks.scaling."""
    with instant(package) as pipe:
        return {name: sweep(pipe, name, sizes, 3)["exponent"] for name, sizes in SWEEPS.items()}


def main() -> None:
    import torch

    from sdexport.exporter import export

    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.quick")
    parser.add_argument("--json", type=Path, help="write the ratios here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        export(MODEL_DIR, Path(scratch) / "package")
        package = Package.load(Path(scratch) / "package")
        ratios, exponents = run(package, Path(scratch)), growth(package)
    for one in ratios:
        print(one)
    fast = all(one.passed for one in ratios)
    for name, found in exponents.items():
        print(f"{name:30} time ~ n^{found['seconds']:.2f}, memory ~ n^{found['bytes']:.2f}")
        fast = fast and max(found.values()) <= LIMIT
    rows = [asdict(r) | {"ratio": r.ratio} for r in ratios]
    save({"ratios": rows, "growth": exponents}, args.json)
    if not fast:
        raise SystemExit("slower than the bounds allow; see the ratios above")


if __name__ == "__main__":
    main()
