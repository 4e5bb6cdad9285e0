"""Shared fixtures: the embedded checkpoint, its package, and pipelines over both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from filelock import FileLock

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from sdexport import Pipeline, load_pipeline
from sdexport.demo_model import MODEL_DIR
from sdexport.exporter import export
from sdexport.runtime.noise import torch_generator


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return MODEL_DIR


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, exported once for the whole run; tests that alter it take a copy."""
    folder = tmp_path_factory.mktemp("exported") / "package"
    if "PYTEST_XDIST_WORKER" in os.environ:  # once for all workers: the first one exports
        folder = tmp_path_factory.getbasetemp().parent / "package"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            export(MODEL_DIR, folder)
    return folder


@pytest.fixture
def package_copy(package: Path, tmp_path: Path) -> Path:
    return shutil.copytree(package, tmp_path / "copy")


@pytest.fixture(scope="session")
def pipe(package: Path) -> Iterator[Pipeline]:
    with load_pipeline(package) as pipeline:
        yield pipeline


@pytest.fixture(scope="module", params=["_noise", "_noise_numpy"])
def noise_source(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Both sources of PyTorch's CPU noise; the first is missing where nothing compiles."""
    module = pytest.importorskip(f"sdexport.runtime.noise.{request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_generator, "source", module)
        yield module


@pytest.fixture(scope="session")
def modules(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's modules in float32, as the exporter loads them."""
    from sdexport.checkpoints.diffusers_folder import Checkpoint

    opened = Checkpoint.open(checkpoint)
    return {part: opened.load(part) for part in ("text_encoder", "unet", "vae")}


@pytest.fixture(scope="session")
def torch_sessions(checkpoint: Path, modules: dict[str, Any]) -> dict[str, Any]:
    from sdexport.checkpoints.diffusers_folder import Checkpoint
    from sdexport.graphs.wrappers import parts
    from sdexport.verification.reference import TorchSession

    configs = Checkpoint.open(checkpoint).configs
    return {part.name: TorchSession(part, modules[part.source]) for part in parts(configs)}
