"""What faults interrupt: an action in a folder, and how to tell the old from the new there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdexport.demo_model import MODEL_DIR, PACKAGE_DIR
from sdexport.engines.cache.sidecar import Sidecar, sidecar_path
from sdexport.engines.errors import PackageError
from sdexport.engines.files import sha256_of, write_atomically
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.images.preview import save_animation
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.embeds_file import load_embeds, save_embeds

Action = Callable[[Path], object]
OLD, NEW, NOTHING = "old", "new", "nothing"
SIZE = 200
"""Of images, in pixels: noise of this size takes several writes."""


@dataclass(frozen=True)
class Scenario:
    """An action whose every call may fail.

    prepare: fills a folder with what is there before.
    start: in the process that forks, returns the action; imports what it needs.
    state: OLD, NEW or NOTHING; raises an error for anything else, such as a mixture.
    allowed: the states after a fault, besides NEW.
    """

    prepare: Action
    start: Callable[[], Action]
    state: Callable[[Path], str]
    allowed: tuple[str, ...] = (OLD,)


def _noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.info["parameters"] = f"image {seed}" * 1000
    return image


def _save_image(name: str, seed: int, folder: Path) -> None:
    save_image(_noise(seed), folder / name)


def _save_animation(name: str, seed: int, folder: Path) -> None:
    save_animation([_noise(seed), _noise(seed + 10)], folder / name)


def _save_embeds(seed: int, folder: Path) -> None:
    values = np.random.default_rng(seed).standard_normal((1, 77, 768), np.float32)
    save_embeds(folder / "prompt.npz", values, prompt=str(seed))


def _embeds_state(folder: Path) -> str:
    return {"1": OLD, "2": NEW}[load_embeds(folder / "prompt.npz").meta["prompt"]]


def _file_scenario(name: str, write: Callable[[int, Path], object]) -> Scenario:
    """A file that holds number 1 before, and number 2 afterwards, byte for byte."""

    def state(folder: Path) -> str:
        if not (folder / name).exists():
            return NOTHING
        expected = folder.parent / f"expected-{name}"
        for number, which in ((1, OLD), (2, NEW)):
            copy = expected / str(number)
            if not copy.exists():
                copy.mkdir(parents=True)
                write(number, copy)
            if (copy / name).read_bytes() == (folder / name).read_bytes():
                return which
        raise AssertionError(f"{name} is a mixture")

    return Scenario(partial(write, 1), lambda: partial(write, 2), state)


def _without_old(scenario: Scenario) -> Scenario:
    return Scenario(lambda folder: None, scenario.start, scenario.state, (NOTHING,))


# Packages

_MARK = "engines/of-the-old-one"


def _package_state(folder: Path) -> str:
    """Which package is at folder/package, verified by its hashes; no other folder may load."""
    for other in folder.iterdir():
        if other.name != "package" and other.is_dir():
            for inner in (other, *(p for p in other.iterdir() if p.is_dir())):
                with suppress(PackageError):
                    Package.load(inner)
                    raise AssertionError(f"{inner} loads")
    if not (folder / "package").exists():
        return NOTHING
    Package.load(folder / "package")
    return OLD if (folder / "package" / _MARK).exists() else NEW


def _place_shipped(folder: Path) -> None:
    """A package that differs from a new one by a file in engines/, which has no hash."""
    shutil.copytree(PACKAGE_DIR, folder / "package")
    (folder / "package" / _MARK).parent.mkdir()
    (folder / "package" / _MARK).touch()


def _start_copy(*, force: bool) -> Action:
    from sdexport.demo_model.demo_run import copy_package

    return lambda folder: copy_package(folder / "package", force)


def _start_export(*, force: bool) -> Action:
    """An export whose graphs are traced here, once, and not verified, which writes no file."""
    from sdexport import exporter
    from sdexport.checkpoints.diffusers_folder import Checkpoint
    from sdexport.graphs import trace
    from sdexport.graphs.wrappers import parts

    checkpoint = Checkpoint.open(MODEL_DIR)
    modules = {name: checkpoint.load(name) for name in checkpoint.configs}
    graphs = {
        part.name: trace._traced(part, modules[part.source], exporter.DEFAULT_OPSET)
        for part in parts(checkpoint.configs)
    }
    trace._traced = lambda part, module, opset: graphs[part.name]
    exporter.verifying_backend = lambda precision: None  # type: ignore[attr-defined]
    return lambda folder: exporter.export(MODEL_DIR, folder / "package", force=force)


# Engines


_WANTED: dict[str, Any] = {
    "component": "unet",
    "backend": "tensorrt",
    "library_version": "1",
    "onnx_sha256": "0" * 64,
    "graph_sha256": "3" * 64,
    "target": {},
    "profiles": (),
    "inputs": (),
    "outputs": (),
}


def _build_engine(number: int, folder: Path) -> None:
    from sdexport.engines.cache.engine_store import build_once

    def write(part: Path) -> None:
        for name in ("unet.plan", "unet.weights"):
            write_atomically(part / name, f"{number} {name}" * 1000)

    wanted = Sidecar(**_WANTED, options={"number": number})
    build_once(folder / "engines" / "unet.plan", wanted, write, rebuild_stale=number > 1)


def _engine_state(folder: Path) -> str:
    """NOTHING if there is no engine that would be used."""
    plan = folder / "engines" / "unet.plan"
    if not plan.exists() or not sidecar_path(plan).exists():
        return NOTHING
    sidecar = Sidecar.read(plan)
    assert sidecar.files[plan.name].sha256 == sha256_of(plan), "the sidecar of another engine"
    number = sidecar.options["number"]
    weights = plan.with_name("unet.weights").read_text()
    assert weights == f"{number} unet.weights" * 1000, "the weights of another engine"
    return {1: OLD, 2: NEW}[number]


def _start_build() -> Action:
    from sdexport.builds.engine_builder import build

    return lambda folder: build(folder / "package", components=["vae_decoder"])


def _prepared_state(folder: Path) -> str:
    plan = folder / "package" / "engines" / "onnxruntime" / "vae_decoder.onnx"
    if not plan.exists() or not sidecar_path(plan).exists():
        return NOTHING
    sidecar = Sidecar.read(plan)
    assert sidecar.files[plan.name].sha256 == sha256_of(plan)
    return NEW


def _images() -> dict[str, Scenario]:
    found = {}
    for name in ("a.png", "a.jpg", "a.webp"):
        found[f"image {name}"] = _file_scenario(name, partial(_save_image, name))
    for name in ("a.gif", "a.webp"):
        found[f"animation {name}"] = _file_scenario(name, partial(_save_animation, name))
    found["first image"] = _without_old(found["image a.png"])
    return found


SCENARIOS: dict[str, Scenario] = {
    **_images(),
    "embeddings": Scenario(
        partial(_save_embeds, 1), lambda: partial(_save_embeds, 2), _embeds_state
    ),
    "engine": Scenario(
        partial(_build_engine, 1),
        lambda: partial(_build_engine, 2),
        _engine_state,
        (OLD, NOTHING),
    ),
    "first engine": Scenario(
        lambda folder: None, lambda: partial(_build_engine, 1), _engine_state, (NOTHING, OLD)
    ),
    "copy": Scenario(
        lambda folder: None,
        partial(_start_copy, force=False),
        _package_state,
        (NOTHING,),
    ),
    "copy --force": Scenario(_place_shipped, partial(_start_copy, force=True), _package_state),
    "build": Scenario(_place_shipped, _start_build, _prepared_state, (NOTHING,)),
    "export": Scenario(
        lambda folder: None,
        partial(_start_export, force=False),
        _package_state,
        (NOTHING,),
    ),
    "export --force": Scenario(_place_shipped, partial(_start_export, force=True), _package_state),
}
