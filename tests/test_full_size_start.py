"""SD 1.5 at full size: memory and start of `sdexport generate`; ten minutes, 20 GB of disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdexport.engines.cache.graph_cache import LIMIT_VARIABLE
from sdexport.engines.cache.user_cache import VARIABLE
from tests.tolerances import MEMORY_GB, PREPARED_CPU, REMEMBERED_CPU

pytestmark = pytest.mark.slow
SIZE = "256"
MAKE = """
import sys
from pathlib import Path
from benchmarks.gpu_models import MODELS, checkpoint, write_package
made = checkpoint(MODELS["sd15"], Path(sys.argv[1]))
write_package(made, Path(sys.argv[2]), half=bool(sys.argv[3]))
"""
"""Makes a package with random weights."""


@dataclass(frozen=True)
class Ended:
    """One process: its processor time in seconds, its peak of resident memory, what it logged."""

    cpu_s: float
    peak_gb: float
    log: str


class Package:
    """A package, a cache of its own, and a folder for what is prepared."""

    def __init__(self, folder: Path, *, half: bool) -> None:
        self.path, self.engines = folder / "package", folder / "engines"
        self._cache = folder / "cache"
        # in a process of its own: a child's peak is at least what its parent has when it starts
        command = [sys.executable, "-c", MAKE, folder / "checkpoint", self.path, "half" * half]
        subprocess.run(list(map(str, command)), check=True)

    def run(self, *arguments: object, cache: bool = True) -> Ended:
        """Run a command of sdexport. cache: whether the user's cache is on."""
        variables: Mapping[str, str] = os.environ | {
            VARIABLE: str(self._cache) if cache else "off",
            LIMIT_VARIABLE: "0",  # hashes alone
        }
        command = [sys.executable, "-m", "sdexport", *map(str, arguments), "-v"]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=variables
        ) as process:
            assert process.stderr is not None
            log = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, log
        cpu = usage.ru_utime + usage.ru_stime
        return Ended(cpu, usage.ru_maxrss * 1024 / 1e9, log)

    def generate(self, backend: str, *, prepared: bool = False, cache: bool = True) -> Ended:
        """Generate an image in two steps. prepared: whether what was built is used."""
        engines = self.engines if prepared else self.engines.with_name("none")
        return self.run(
            *("generate", self.path, "a lighthouse", "-o", self.path.with_name("image.png")),
            *("--size", f"{SIZE}x{SIZE}", "--steps", 2, "--seed", 0, "--backend", backend),
            *("--engine-dir", engines, "--force"),
            cache=cache,
        )

    def build(self, backend: str) -> None:
        """Prepare the graphs."""
        name, _, option = backend.partition(",")
        further: tuple[object, ...] = ()
        if name == "openvino":
            precision = option.partition("=")[2] or "f32"
            further = ("--height", SIZE, "--width", SIZE, "--precision", precision)
        self.run("build", self.path, "--backend", name, "--engine-dir", self.engines, *further)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return Package(tmp_path_factory.mktemp("fp32"), half=False)


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return Package(tmp_path_factory.mktemp("fp16"), half=True)


@pytest.mark.parametrize("backend", [name for name in MEMORY_GB if " " not in name])
def test_peak_of_resident_memory_is_that_of_the_table(fp32: Package, backend: str) -> None:
    found = fp32.generate(backend, cache=False)
    assert found.peak_gb < MEMORY_GB[backend]


def test_peak_of_a_float16_package_is_that_of_the_table(fp16: Package) -> None:
    assert fp16.generate("onnxruntime").peak_gb < MEMORY_GB["fp16 package"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino,precision=bf16"])
def test_prepared_graphs_start_sooner(fp32: Package, backend: str) -> None:
    """Counted in processor time, which other programs change little."""
    plain = fp32.generate(backend, cache=False)
    fp32.build(backend)
    prepared = fp32.generate(backend, prepared=True)
    assert prepared.cpu_s < PREPARED_CPU * plain.cpu_s
    assert prepared.peak_gb < MEMORY_GB[f"{backend} prepared"]


def test_hashes_are_remembered_by_the_next_process(fp32: Package) -> None:
    read = fp32.generate("onnxruntime", cache=False)
    fp32.generate("onnxruntime")
    later = fp32.generate("onnxruntime")
    if "unchanged since they were read" not in later.log:
        pytest.skip("the folder for temporary files is on a file system without reliable times")
    assert read.cpu_s - later.cpu_s > REMEMBERED_CPU
