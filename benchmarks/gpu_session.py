"""Sessions on an NVIDIA GPU in one go: what works, whether it is right, how long a call takes.

    python -m benchmarks.gpu_session PACKAGE --json out.json [--engine-dir DIR] [--repeats 50]

Every stage is tried by itself and its error kept, so that a short lease of a GPU gives all it can:
CUDA through engines.cuda, then TensorRT-RTX, TensorRT and ONNX Runtime's CUDA against the recorded
answers of PyTorch, the session contract in short, and host wall time for a call of each component
beside PyTorch (float32, TF32 off, the embedded model's own modules). Needs NumPy and what is to be
measured. Engines are built if they are not there.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import alternate, parser
from engines import PLAN_BACKENDS, Session, cuda
from engines.tensorrt_library import LIBRARIES
from runtime import Package

BACKENDS = (*PLAN_BACKENDS, "onnxruntime-cuda")
PACKAGES = (
    "cuda-bindings",
    "numpy",
    "onnxruntime-gpu",
    "polygraphy",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
)
BOUND = 2e-2
"""Of the output's scale: what TF32 may do. The measured error is in the report."""
Feeds = dict[str, np.ndarray]


def tried(stage: Callable[[], Any]) -> Any:
    """What a stage gives, or its error as text."""
    started = time.perf_counter()
    try:
        result = stage()
    except Exception as error:  # noqa: BLE001  the report is of errors too
        print(f"  {type(error).__name__}: {error}")
        last = traceback.format_exc().strip().splitlines()[-8:]
        result = {"error": f"{type(error).__name__}: {error}", "trace": last}
    print(f"  {time.perf_counter() - started:.1f} s")
    return result


def environment() -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpu = tried(lambda: vars(cuda.gpu()))
    driver = tried(lambda: cuda.call(cuda.runtime().cudaDriverGetVersion))
    return {"gpu": gpu, "driver": driver, "python": platform.python_version(), "versions": versions}


def check_cuda() -> dict[str, Any]:
    """Copies there and back, and a captured copy that is replayed on other data."""
    size = 64 << 20
    stream = cuda.Stream()
    host, back = cuda.PinnedBuffer(size), cuda.PinnedBuffer(size)
    a, b = cuda.DeviceBuffer(size), cuda.DeviceBuffer(size)
    sent, got = host.view((size // 4,), "float32"), back.view((size // 4,), "float32")
    sent[:] = np.arange(sent.size, dtype=np.float32)
    stream.upload(a, host, size)
    stream.duplicate(b, a, size)
    stream.download(back, b, size)
    stream.synchronize()
    copied = bool((sent == got).all())
    graph = stream.capture(lambda: stream.duplicate(b, a, size))
    sent += 1
    stream.upload(a, host, size)
    graph.launch(stream)
    stream.download(back, b, size)
    stream.synchronize()
    replayed = bool((sent == got).all())
    seconds = {}
    for name, work in {
        "upload": lambda: stream.upload(a, host, size),
        "download": lambda: stream.download(back, a, size),
        "graph_of_a_copy": lambda: graph.launch(stream),
    }.items():
        samples = []
        for _ in range(20):
            started = time.perf_counter()
            work()
            stream.synchronize()
            samples.append(time.perf_counter() - started)
        seconds[name] = size / sorted(samples)[10] / 1e9
    try:
        cuda.DeviceBuffer(1 << 50)
        refused = ""
    except cuda.EngineError as error:
        refused = str(error)
    del sent, got
    for thing in (graph, a, b, host, back, stream):
        thing.close()
        thing.close()
    return {"copied": copied, "replayed": replayed, "gb_per_s": seconds, "out_of_memory": refused}


def recorded(package: Package, component: str) -> tuple[Feeds, Feeds]:
    with np.load(package.folder / "reference" / f"{component}.npz") as data:
        arrays = dict(data)

    def named(prefix: str) -> Feeds:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    return named("input."), named("output.")


def errors(answers: Feeds, expected: Feeds) -> dict[str, float]:
    return {
        name: float(np.abs(answers[name] - value).max() / np.abs(value).max())
        for name, value in expected.items()
    }


def contract(session: Session, feeds: Feeds, expected: Feeds) -> dict[str, Any]:
    """The points of tests/engines/test_contract.py that need no other package."""
    output = next(iter(expected))
    first = session.run(feeds)[output]
    kept = first.copy()
    held = next(name for name, value in feeds.items() if value.size == max_size(feeds))
    rest = {name: value for name, value in feeds.items() if name != held}
    with session.bind(**{held: feeds[held]}) as bound:
        bind = [float(np.abs(bound.run(rest)[output] - kept).max()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: session.run(feeds)[output], range(12)))
    untouched = bool((first == kept).all())
    half = {n: v[:1] if len(v) == len(feeds[held]) else v for n, v in feeds.items()}
    alone = session.run(half)[output]
    refused = ""
    try:
        session.run(feeds | {held: feeds[held].astype(np.float16)})
    except ValueError as error:
        refused = str(error)
    return {
        "bind": bind,
        "threads": max(float(np.abs(m - kept).max()) for m in many),
        "outputs_untouched": untouched,
        "batch_1_of_2": float(np.abs(alone - kept[:1]).max()),
        "refused": refused,
    }


def max_size(feeds: Feeds) -> int:
    return max(value.size for value in feeds.values())


def built(package: Package, backend: str, engine_dir: Path) -> Any:
    from engines.profiles import Span
    from sdexport.build import Sizes, build, report

    span = Span(64, 128, 256)
    sizes = Sizes(batch=Span(1, 1, 4), height=span, width=span)
    return report(build(package, backend=backend, sizes=sizes, engine_dir=engine_dir))


def torch_calls(component: str, feeds: Feeds) -> Callable[[], object]:
    import torch

    from sdexport.checkpoint import Checkpoint
    from sdexport.components import parts
    from sdexport.shapes import MODEL_DIR

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    checkpoint = Checkpoint.open(MODEL_DIR)
    every = parts(*(checkpoint.configs[p] for p in ("text_encoder", "unet", "vae")))
    part = next(p for p in every if p.name == component)
    module = part.wrap(checkpoint.load(part.source)).eval().cuda()
    tensors = {name: torch.from_numpy(value).cuda() for name, value in feeds.items()}

    def call() -> None:
        with torch.inference_mode():
            module(**tensors)
        torch.cuda.synchronize()

    return call


def measured(package: Package, component: str, engine_dir: Path, repeats: int) -> dict[str, Any]:
    """Answers and times of every backend that opens."""
    feeds, expected = recorded(package, component)
    report: dict[str, Any] = {"shapes": {n: list(v.shape) for n, v in feeds.items()}}
    calls: dict[str, Callable[[], object]] = {}
    sessions: dict[str, Session] = {}
    for backend in BACKENDS:
        print(f"{component} on {backend}")

        def check(backend: str = backend) -> dict[str, Any]:
            started = time.perf_counter()
            session = package.open(component, backend, engine_dir=engine_dir)
            seconds = time.perf_counter() - started
            sessions[backend] = session
            found = errors(session.run(feeds), expected)
            result: dict[str, Any] = {"open_s": seconds, "errors": found}
            result["right"] = max(found.values()) <= BOUND
            result["contract"] = tried(lambda: contract(session, feeds, expected))
            calls[backend] = lambda: session.run(feeds)
            return result

        report[backend] = tried(check)
    print(f"{component} on torch")
    made = tried(lambda: torch_calls(component, feeds))
    if callable(made):
        calls["torch (inputs on the GPU)"] = made
    else:
        report["torch"] = made
    report["times"] = tried(lambda: alternate(calls, repeats)) if calls else {}
    for session in sessions.values():
        tried(session.close)
    return report


def main() -> None:
    arguments = parser("gpu_session", __doc__)
    arguments.add_argument("package", type=Path)
    arguments.add_argument("--engine-dir", type=Path, default=Path("gpu-engines"))
    args = arguments.parse_args()
    report: dict[str, Any] = {"environment": environment()}
    print("cuda")
    report["cuda"] = tried(check_cuda)
    package = Package.load(args.package)
    report["builds"] = {}
    for backend in LIBRARIES:
        print(f"build {backend}")
        report["builds"][backend] = tried(lambda b=backend: built(package, b, args.engine_dir))
    report["components"] = {
        name: measured(package, name, args.engine_dir, args.repeats)
        for name in package.manifest.components
    }
    show(report["components"])
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")


def show(components: Mapping[str, Any]) -> None:
    for name, report in components.items():
        times = report["times"]
        for backend, figures in times.items() if "error" not in times else ():
            print(f"{name:14} {backend:28} {figures['median_us']:10,.0f} us")


if __name__ == "__main__":
    main()
