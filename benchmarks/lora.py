"""What LoRAs cost at run time: `python -m benchmarks.lora PACKAGE [--backends ...] [--json FILE]`.

PACKAGE was exported with --lora-inputs. Calls of the UNet with the inputs bound, as in a guided
image, in turn: of the plain graph, and of the one that takes LoRAs with files of random factors:
one of the layers that most LoRAs change (attention and feed-forward), of rank 1 and of `--rank`.
Then the time from one LoRA to the next, once both were read, and the memory over many of these. In
sessions of their own, as backends that compile do so for the shapes of the factors, the plain graph
and a LoRA of all layers. Processor time does not depend on what else runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reports import save
from sdexport import Pipeline, load_pipeline
from sdexport.bench.measure import machine
from sdexport.engines import Session
from sdexport.engines.process_memory import resident_mb
from sdexport.engines.session import TensorSpec
from sdexport.runtime.adapters.applied_loras import AppliedLoras
from sdexport.runtime.adapters.lora_inputs import LayerShape, is_lora_input
from sdexport.runtime.expected_calls import SHARED_INPUTS, STEP_INPUTS
from sdexport.runtime.models.components import lora_graph

BACKENDS = ("onnxruntime", "openvino", "openvino,precision=bf16")
USUAL = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


def write_lora(path: Path, layers: Mapping[str, LayerShape], rank: int, seed: int) -> Path:
    """A .safetensors file of random factors under PEFT's names."""
    rng, header, end = np.random.default_rng(seed), {}, 0
    data: list[bytes] = []
    for name, shape in layers.items():
        tail = (1,) * len(shape.kernel)
        for key, size in {
            "lora_A": (rank, shape.inputs, *shape.kernel),
            "lora_B": (shape.outputs, rank, *tail),
        }.items():
            data.append(rng.standard_normal(size, np.float32).tobytes())
            header[f"unet.{name}.{key}.weight"] = {
                "dtype": "F32",
                "shape": list(size),
                "data_offsets": [end, end + len(data[-1])],
            }
            end += len(data[-1])
    text = json.dumps(header).encode()
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *data]))
    return path


class Costs:
    """Measures a pipeline whose package takes LoRAs."""

    def __init__(self, pipe: Pipeline, size: int, folder: Path, rank: int) -> None:
        self._pipe, self._size = pipe, size
        self._name = pipe.package.family.denoiser
        layers = pipe._loras.target.shapes[self._name]
        usual = {name: shape for name, shape in layers.items() if name.endswith(USUAL)}
        self.usual = {
            "usual layers, rank 1": write_lora(folder / "1.safetensors", usual, 1, 0),
            f"usual layers, rank {rank}": write_lora(folder / "2.safetensors", usual, rank, 1),
        }
        self.all = {
            f"all layers, rank {rank}": write_lora(folder / "3.safetensors", layers, rank, 2)
        }
        self.others = [
            write_lora(folder / f"switch-{i}.safetensors", usual, rank, 3 + i) for i in range(3)
        ]

    def applied(self, path: Path) -> AppliedLoras:
        """The LoRA of a file, as a call applies it."""
        return AppliedLoras(self._pipe._loras, [(path, 0.5)], 1, self._pipe._components)

    def calls(self, files: Mapping[str, Path], repeats: int) -> dict[str, dict[str, float]]:
        """Seconds and processor seconds of a call, the smallest of each, and the ratio to plain."""
        sessions: dict[str, Session] = {"plain": self._pipe.session(self._name)}
        for name, path in files.items():
            sessions[name] = self._adapted(path)
        steps = {spec.name: self._array(spec, 1) for spec in sessions["plain"].inputs}
        feeds = {name: value for name, value in steps.items() if name in STEP_INPUTS}
        bound = {name: self._bound(session) for name, session in sessions.items()}
        best = {name: [np.inf, np.inf] for name in bound}
        for _, (name, session) in itertools.product(range(repeats + 1), bound.items()):
            wall, used = time.perf_counter(), time.process_time()
            session.run(feeds)
            spent = time.perf_counter() - wall, time.process_time() - used
            best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
        wall, used = best["plain"]
        return {
            name: {"s": one, "cpu_s": two, "ratio": one / wall, "cpu_ratio": two / used}
            for name, (one, two) in best.items()
        }

    def switches(self, count: int) -> Iterator[float]:
        """Seconds from one LoRA to inputs that are bound for the next, both read before."""
        for path in self.others:
            self.applied(path)
        for _, path in zip(range(count), itertools.cycle(self.others), strict=False):
            started = time.perf_counter()
            session = self._adapted(path)
            bound = self._bound(session)
            yield time.perf_counter() - started
            bound.close()

    def _adapted(self, path: Path) -> Session:
        return self.applied(path).adapted(self._name, self._pipe.session(lora_graph(self._name)))

    def _bound(self, session: Session) -> Session:
        constants = {
            spec.name: self._array(spec, 2)
            for spec in session.inputs
            if spec.name not in STEP_INPUTS and not is_lora_input(spec.name)
        }
        return session.bind(shared=SHARED_INPUTS, **constants)

    def _array(self, spec: TensorSpec, batch: int) -> np.ndarray:
        cells = self._size // self._pipe.package.manifest.downscale
        sizes = {"batch": batch, "height": cells, "width": cells, "sequence": 77}
        shape = [sizes[each] if isinstance(each, str) else each for each in spec.shape]
        values = np.random.default_rng(0).standard_normal(shape)
        return (np.full(shape, 500.0) if spec.name == "timestep" else values).astype(spec.dtype)


def measure(
    package: Path, backend: str, *, size: int, rank: int, threads: int, repeats: int, switches: int
) -> dict[str, Any]:
    """What LoRAs cost on one backend: calls of the UNet, and the time of switches between LoRAs."""
    seconds, memory = [], []
    calls: dict[str, dict[str, float]] = {}
    for kind in ("all", "usual"):
        with (
            tempfile.TemporaryDirectory() as folder,
            load_pipeline(package, backend, verify=False, threads=threads) as pipe,
        ):
            costs = Costs(pipe, size, Path(folder), rank)
            calls = costs.calls(getattr(costs, kind), repeats) | {
                name: call for name, call in calls.items() if name != "plain"
            }
            for each in costs.switches(switches if kind == "usual" else 0):
                seconds.append(each)
                memory.append(resident_mb()["private_mb"])
    switch = {
        "median_ms": 1000 * float(np.median(seconds)),
        "largest_ms": 1000 * max(seconds),
        "private_mb": memory[9 :: max(len(memory) // 10, 1)],
    }
    return {"calls": calls, "switch": switch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.lora")
    parser.add_argument("package", type=Path)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--size", type=int, default=256, help="in pixels")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of the backend")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    names = ("size", "rank", "threads", "repeats")
    settings = {name: getattr(args, name) for name in names}
    backends = {}
    for backend in args.backends:
        found = measure(args.package, backend, **settings, switches=args.switches)
        backends[backend] = found
        for name, call in found["calls"].items():
            print(f"{backend:24} {name:28} {call['s']:.3f} s, {call['cpu_s']:.3f} s of processor: ")
            print(f"{call['ratio']:.3f} and {call['cpu_ratio']:.3f} times the plain graph")
        print(f"{backend:24} switch", found["switch"], flush=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    save({"machine": machine(), **settings, "load": load, "backends": backends}, args.json)


if __name__ == "__main__":
    main()
