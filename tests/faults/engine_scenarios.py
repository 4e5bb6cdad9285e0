"""Scenarios of engines: writing one, building one, and caches."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.cache import remembered_hashes, user_cache
from sdexport.engines.cache.file_states import FileState
from sdexport.engines.cache.remembered_hashes import recall, remember
from sdexport.engines.cache.sidecar import Sidecar, sidecar_path
from sdexport.engines.errors import EngineError
from sdexport.engines.files import sha256_of, write_atomically
from tests.faults.package_scenarios import place_shipped
from tests.faults.scenario import NEW, NOTHING, OLD, Action, Scenario, empty

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


def _start_cache() -> Action:
    import openvino  # noqa: F401  # once, not in each run

    return lambda folder: _embedded(folder / "cache")


def _start_own_cache() -> Action:
    import openvino  # noqa: F401

    return lambda folder: _embedded(folder / "cache", own=True)


def _embedded(cache: Path, *, own: bool = False) -> float:
    """The output of a small graph that OpenVINO compiles, or takes from a cache.

    Args:
      own: whether `cache` is for OpenVINO itself, as its option cache_dir, or the user's cache.
    """
    from sdexport.engines.backends import open_session

    path = PACKAGE_DIR / "text_encoder" / "token_embedding.onnx"
    options = {"cache_dir": cache} if own else {"digest": "0" * 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(user_cache.VARIABLE, user_cache.OFF if own else str(cache))
        with open_session(path, "openvino", **options) as session:
            ids = np.arange(8, dtype=np.int64)[None]
            (output,) = session.run({session.inputs[0].name: ids}).values()
    return float(np.abs(output).sum())


def _cache_state(folder: Path, *, own: bool = False) -> str:
    """NEW if a copy of the cache gives the right output, whether a file of it is used or not."""
    copy = folder.parent / "copy-of-cache"
    shutil.rmtree(copy, ignore_errors=True)
    if (folder / "cache").exists():
        shutil.copytree(folder / "cache", copy)
    expected = _embedded(folder.parent / "another-cache", own=own)
    assert _embedded(copy, own=own) == expected, "a damaged file is used"
    return NEW


_STATE = FileState(1, 2, 2**30, 3, 4, "boot")


def _remember(number: int, folder: Path) -> None:
    """Remember another hash.

    Raises: EngineError: it is not in the list, which the function itself only logs.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(user_cache.VARIABLE, str(folder / "cache"))
        remember([(_STATE, f"{number}" * 64)])
        remembered_hashes._known.clear()
        if recall(_STATE, f"{number}" * 64) is None:
            raise EngineError("the hash is not remembered")


def _remembered(folder: Path) -> str:
    """Which hash is remembered; NOTHING if none is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(user_cache.VARIABLE, str(folder / "cache"))
        remembered_hashes._known.clear()
        found = recall(_STATE)
    return NOTHING if found is None else {"1": OLD, "2": NEW}[found.sha256[0]]


def engine_scenarios() -> dict[str, Scenario]:
    first = partial(_build_engine, 1), partial(_build_engine, 2)
    remembers = partial(_remember, 1), partial(_remember, 2)
    return {
        "engine": Scenario(first[0], lambda: first[1], _engine_state, (OLD, NOTHING)),
        "first engine": Scenario(empty, lambda: first[0], _engine_state, (NOTHING, OLD)),
        "compiled graph in the cache": Scenario(empty, _start_cache, _cache_state),
        "hashes in the cache": Scenario(remembers[0], lambda: remembers[1], _remembered),
        "cache_dir of OpenVINO": Scenario(empty, _start_own_cache, partial(_cache_state, own=True)),
        "build": Scenario(place_shipped, _start_build, _prepared_state, (NOTHING,)),
    }
