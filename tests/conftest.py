"""Fixtures for all tests: the demo model's checkpoint, its package, and pipelines of both."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["SDEXPORT_CACHE"] = "off"  # tests of a cache name a folder of their own
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from sdexport import Pipeline, load_pipeline
from sdexport.demo_model import MODEL_DIR
from sdexport.exporter import export
from sdexport.runtime.noise import torch_generator
from tests.helpers import image_adapters as image_adapters_helper
from tests.helpers import lora_package as lora_package_helper
from tests.helpers import software_gpu as software_gpu_helper
from tests.helpers.control_calls import make_nets
from tests.helpers.control_unions import make_union, make_union_folder
from tests.helpers.control_xs import make_xs_folder
from tests.helpers.low_precision import export_from_graphs
from tests.helpers.shared import made_once

TESTS = Path(__file__).parent
SLOWEST_FIRST = (
    "test_distributions.py",
    "sdexport/graphs/test_graphs.py",
    "sdexport/test_exporter.py",
    "sdexport/checkpoints/test_whole_sources.py",
    "sdexport/checkpoints/test_modules.py",
    "sdexport/graphs/test_precision.py",
    "sdexport/test_exported_families.py",
    "test_install.py",
    "parity/test_token_embeds_parity.py",
    "parity/test_component_parity.py",
    "sdexport/demo_model/test_demo_model.py",
    "sdexport/builds/test_prepare_onnxruntime.py",
    "sdexport/verification/test_webgpu_package.py",
    "engines/test_session_contract.py",
    "sdexport/verification/test_against.py",
)
"""Files that take longest. Workers take whole files in this order, so none of these is the last
one, at which all but one worker would wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {TESTS / name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture
def says(request: pytest.FixtureRequest) -> str:
    """The part of a message that the test's row of docs/file-kinds.md quotes."""
    (mark,) = request.node.iter_markers("file_kind")
    return str(mark.kwargs["says"])


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return MODEL_DIR


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, exported once for the whole run; tests that change it take a copy."""
    return made_once(tmp_path_factory, "package", partial(export, MODEL_DIR))


@pytest.fixture(scope="session")
def half_package(package: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in fp16, converted from the graphs of `package`."""
    make = partial(export_from_graphs, package, checkpoint, "fp16")
    return made_once(tmp_path_factory, "half_package", make)


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint, and the package with graphs that take LoRAs and ControlNets."""
    return made_once(tmp_path_factory, "lora_folder", lora_package_helper.make)


@pytest.fixture(scope="session")
def lora_package(lora_folder: Path) -> Path:
    return lora_folder / "package"


@pytest.fixture(scope="session")
def image_adapters(lora_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small package that takes T2I-Adapters and IP-Adapters, with some that fit it."""
    make = partial(image_adapters_helper.make_folder, lora_folder)
    return made_once(tmp_path_factory, "image_adapters", make)


@pytest.fixture(scope="session")
def control_folder(tmp_path_factory: pytest.TempPathFactory, lora_folder: Path) -> Path:
    """Two ControlNets for that checkpoint, and their packages."""
    make = partial(make_nets, lora_folder / "checkpoint")
    return made_once(tmp_path_factory, "control_folder", make)


@pytest.fixture(scope="session")
def union_net(tmp_path_factory: pytest.TempPathFactory, lora_folder: Path) -> Path:
    """The package of a ControlNet-Union for that checkpoint, next to its folder, union-net."""
    make = partial(make_union, lora_folder / "checkpoint")
    return made_once(tmp_path_factory, "union_net", make) / "union"


@pytest.fixture(scope="session")
def union_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SDXL checkpoint, its package, and two ControlNet-Unions with their packages."""
    return made_once(tmp_path_factory, "union_folder", make_union_folder)


@pytest.fixture(scope="session")
def xs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SD 1 checkpoint, its package, and a ControlNet-XS with its package."""
    return made_once(tmp_path_factory, "xs_folder", partial(make_xs_folder, "small"))


@pytest.fixture(scope="session")
def software_gpu() -> Iterator[None]:
    """WebGPU on a GPU in software, for the whole process; skips where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        software_gpu_helper.use(patch)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", ())]
    without_gpu = [text for text in skipped if software_gpu_helper.NO_GPU in text]
    if without_gpu:
        reason = software_gpu_helper.missing()
        terminalreporter.write_line(f"{len(without_gpu)} tests of WebGPU were skipped: {reason}")


@pytest.fixture
def package_copy(package: Path, tmp_path: Path) -> Path:
    return shutil.copytree(package, tmp_path / "copy")


@pytest.fixture(scope="session")
def pipe(package: Path) -> Iterator[Pipeline]:
    with load_pipeline(package) as pipeline:
        yield pipeline


@pytest.fixture(scope="module", params=["_noise", "_noise_numpy"])
def noise_source(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Both implementations of PyTorch's CPU noise; the compiled one may be missing."""
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


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    """Each test begins without the levels and filters that the command line sets."""

    def reset() -> None:
        for name, level in {
            "": "WARNING",
            "sdexport": "NOTSET",
            "sdexport.runtime": "NOTSET",
        }.items():
            logging.getLogger(name).setLevel(level)
        for handler in logging.getLogger().handlers:
            handler.filters.clear()

    reset()
    yield
    reset()
