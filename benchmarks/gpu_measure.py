"""Measures one contender of `benchmarks.gpu` on one model, and what it needs for that.

Each component is compared with PyTorch in float32 before it is timed, and an image with PyTorch's
in float16. An output that is not correct is not timed.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_checks import compared, contract
from benchmarks.gpu_goals import COSINE
from benchmarks.gpu_models import MODELS, Model, dry_model, with_weights, write_package
from benchmarks.gpu_names import COMPILED, ORT, ORT_GRAPH, PLANS, TORCH
from benchmarks.gpu_ort import variants
from benchmarks.gpu_peers import Feeds, Peers
from benchmarks.gpu_profile import profiled
from benchmarks.gpu_timing import cost, device_bytes, measure, shares, torch_peak
from benchmarks.gpu_work import Settings, earlier, tried
from benchmarks.gpu_worker import Report
from sdexport import Package
from sdexport.builds.engine_builder import EngineSizes, build
from sdexport.builds.engine_builder import report as built_report
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.cache.profiles import Span

IMAGES = 3
COMPONENTS = ("unet", "vae_decoder", "text_encoder")
PROFILED_STEPS = 10
_VARIANT_REPEATS = 10


def write(name: str, settings: Settings, report: Report) -> None:
    """The weights of a model, and its package in float16; that of the demo model is there."""
    model, folder = _model(name, settings), _folder(name, settings)
    if model.family is None:
        shutil.copytree(PACKAGE_DIR, folder / "package", dirs_exist_ok=True)
        report({"bytes": Package.load(folder / "package", verify=False).size})
        return
    started = time.perf_counter()
    source = with_weights(model, folder / "checkpoint")
    report({"weights_s": time.perf_counter() - started})
    parts: dict[str, float] = {}

    def on_part(part: str, seconds: float) -> None:
        parts[part] = seconds
        report({"parts_s": parts})

    write_package(source, folder / "package", half=True, on_part=on_part)
    report({"bytes": Package.load(folder / "package", verify=False).size})


def contender(name: str, backend: str, settings: Settings, report: Report) -> None:
    """Components, whole images, memory and profile of one contender."""
    model, peers = _opened(name, settings)
    before = device_bytes(peers.device)
    if backend == ORT_GRAPH:
        report({"variants": _choose_variant(model, peers, settings, report)})
    if model.family is None and backend in (ORT, *PLANS):
        report({"contract": tried(lambda: _contract(model, peers, backend))})
    for component in () if backend == COMPILED else COMPONENTS:
        batch = 2 if component == "unet" else 1
        row = tried(lambda c=component, b=batch: _row(model, peers, backend, c, b, settings))
        report({component: row})
    images = tried(lambda: peers.image_function(backend))
    if isinstance(images, dict):
        report(images)  # its error
        return
    for steps in model.steps:
        report({f"image.{steps}": tried(lambda s=steps: _images(model, peers, backend, images, s))})
    used = max(device_bytes(peers.device) - before, 0)  # negative where a library freed memory
    report({"device_bytes": used, "torch_peak": torch_peak()})
    steps = min(PROFILED_STEPS, model.steps[0])
    report({"profile": tried(lambda: profiled(lambda: images(steps, 99), peers.device))})


def build_and_measure(name: str, backend: str, settings: Settings, report: Report) -> None:
    """Build the engines of a TensorRT, then as any contender."""
    model, peers = _opened(name, settings)
    side = Span(model.side, model.side, model.side)
    sizes = EngineSizes(batch=Span(1, 1, 1), height=side, width=side, static=True)
    built = build(
        Package.load(peers.package, verify=False),
        backend=backend,
        sizes=sizes,
        engine_dir=peers.engine_dir,
        rebuild_stale=True,
    )
    report({"built": built_report(built)})
    contender(name, backend, settings, report)


def sizes(name: str, settings: Settings, report: Report) -> None:
    """The UNet at other batches and sizes, with ONNX Runtime and PyTorch."""
    model, peers = _opened(name, settings)
    for side in model.sides:
        for batch in model.batches:
            if (batch, side) == (2, model.side):
                continue  # measured for every contender
            _reference(peers, "unet", batch, side)
            for backend in (ORT, TORCH):
                row = tried(
                    lambda b=batch, s=side, k=backend: _row(model, peers, k, "unet", b, settings, s)
                )
                report({f"{backend}.unet.{batch}x{side}": row})


def _model(name: str, settings: Settings) -> Model:
    return MODELS[name] if settings["device"] == "cuda" else dry_model(name)


def _folder(name: str, settings: Settings) -> Path:
    return Path(settings["work"]) / name


def _opened(name: str, settings: Settings) -> tuple[Model, Peers]:
    model, folder = _model(name, settings), _folder(name, settings)
    source = with_weights(model, folder / "checkpoint")
    device = settings["device"]
    return model, Peers(model, source, folder / "package", folder / "engines", device)


def _reference(peers: Peers, component: str, batch: int, side: int) -> Feeds:
    """PyTorch's outputs in float32, from the file that an earlier task wrote."""
    path = peers.package.parent / "reference" / f"{component}.{batch}x{side}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        outputs = peers.reference(component, peers.feeds(component, batch, side))
        np.savez(path, **outputs)  # type: ignore[arg-type]
    with np.load(path) as arrays:
        return dict(arrays)


def _row(
    model: Model,
    peers: Peers,
    backend: str,
    component: str,
    batch: int,
    settings: Settings,
    side: int = 0,
) -> dict[str, Any]:
    """A component's difference from PyTorch in float32, and its time if that is small."""
    side = side or model.side
    feeds, expected = peers.feeds(component, batch, side), _reference(peers, component, batch, side)
    started = time.perf_counter()
    runner = peers.runner(backend, component, feeds)
    opened = time.perf_counter()
    outputs = runner.outputs()
    row: dict[str, Any] = {"open_s": opened - started, "first_s": time.perf_counter() - opened}
    row["to_fp32"] = compared(outputs, expected)
    if not row["to_fp32"]["cosine"] >= COSINE:  # also for NaN
        return row
    limits = {"repeats": settings["repeats"], "seconds": settings["seconds"]}
    row |= measure({backend: runner}, peers.device, **limits)[backend]
    known = earlier(settings, f"{model.name}.{TORCH}").get(component, {})
    row["work"] = known.get("work") or tried(lambda: cost(peers, component, feeds))
    ceilings = earlier(settings, "limits")
    if side == model.side and "flops" in row["work"] and "flops_per_s" in ceilings:
        row["shares"] = shares(row, row["work"], ceilings)
    return row


def _contract(model: Model, peers: Peers, backend: str) -> dict[str, Any]:
    """The session contract on the UNet, in a session as a pipeline opens it."""
    feeds = peers.feeds("unet", 2, model.side)
    with peers.plain_session("unet", backend) as session:
        return contract(session, feeds, session.run(feeds))


def _images(model: Model, peers: Peers, backend: str, generate: Any, steps: int) -> dict[str, Any]:
    """Wall time of whole images, and the last one's difference from PyTorch's, of 255."""
    started = time.perf_counter()
    generate(min(steps, 4), 0)
    row: dict[str, Any] = {"warm_up_s": time.perf_counter() - started, "seconds": []}
    for i in range(IMAGES):
        started = time.perf_counter()
        image = generate(steps, i + 1)
        row["seconds"].append(time.perf_counter() - started)
    path = peers.package.parent / "reference" / f"image.{steps}.npy"
    if backend == TORCH:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, image)
    elif path.exists():
        difference = np.abs(image.astype(float) - np.load(path))
        row |= {"mean_of_255": difference.mean(), "most_of_255": difference.max()}
    return row


def _choose_variant(
    model: Model, peers: Peers, settings: Settings, report: Report
) -> dict[str, Any]:
    """Time the UNet with each of gpu_ort.VARIANTS, and keep the fastest that is correct."""
    feeds, expected = peers.feeds("unet", 2, model.side), _reference(peers, "unet", 2, model.side)
    rows: dict[str, Any] = {}
    best: tuple[float, str] | None = None

    def try_variant() -> dict[str, Any]:
        started = time.perf_counter()
        runner = peers.runner(ORT_GRAPH, "unet", feeds)
        seconds = {"open_s": time.perf_counter() - started}
        session, _ = peers.session("unet", ORT_GRAPH)
        found = seconds | {"attention_rewritten": getattr(session, "attention", 0)}
        found["to_fp32"] = compared(runner.outputs(), expected)
        found |= measure({"": runner}, peers.device, repeats=_VARIANT_REPEATS, seconds=2.0)[""]
        return found

    for name in variants(peers.device):
        peers.variant = name
        rows[name] = row = tried(try_variant)
        if "error" not in row and row["to_fp32"]["cosine"] >= COSINE:
            microseconds = row.get("events", row["host"])["median_us"]
            best = min(best or (microseconds, name), (microseconds, name))
        report({"variants": rows})
        tried(lambda: peers.close_session("unet", ORT_GRAPH))
    if best is not None:
        peers.variant = best[1]
        report({"variant": best[1]})
    return rows
