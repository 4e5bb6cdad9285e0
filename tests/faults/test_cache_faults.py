"""The user's cache on a full disk, and after a process was killed while it wrote to it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", exc_type=ImportError)

from sdexport import Package
from sdexport.engines.cache import graph_cache, remembered_hashes, user_cache
from sdexport.engines.cache.file_states import FileState
from sdexport.engines.cache.remembered_hashes import NAME, recall, remember
from sdexport.engines.cache.sidecar import sidecar_path
from sdexport.runtime.component_engines import open_component
from tests.helpers.small_disk import run_on_small_disk

DECODER = "vae_decoder"
DECODE = """
import sys
import numpy as np
from sdexport import Package
from sdexport.runtime.component_engines import open_component

def decoded(package):
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    with open_component(Package.load(package), "vae_decoder", "openvino") as session:
        return session.run({"latent_sample": latents})["sample"]
"""
KILLED = f"""{DECODE}
import os, time

rename, left = os.replace, [int(sys.argv[2])]

def replace(*names):
    if not left[0]:
        print("now", flush=True)
        time.sleep(600)
    left[0] -= 1
    rename(*names)

os.replace = replace
decoded(sys.argv[1])
print("done", flush=True)
"""
"""Stops before a rename, of which the number is given, until it is killed."""
MOVES = 3
"""Of the compiled graph out of OpenVINO's folder and to its place, and of its sidecar."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    for module in (user_cache, remembered_hashes):
        module._warn_once.cache_clear()
    remembered_hashes._known.clear()
    return tmp_path / "cache"


def _decoded(package: Path) -> np.ndarray:
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    with open_component(Package.load(package), DECODER, "openvino") as session:
        return session.run({"latent_sample": latents})["sample"]


@pytest.fixture(scope="module")
def expected(package: Path) -> np.ndarray:
    """The decoder's output without a cache."""
    return _decoded(package)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("moves", [*range(MOVES), None])
def test_killed_process_leaves_no_graph_that_is_opened(
    moves: int | None, package: Path, cache: Path, expected: np.ndarray
) -> None:
    """At each rename, and (None) while OpenVINO writes."""
    command = [sys.executable, "-c", KILLED, package, str(999 if moves is None else moves)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if moves is None:
            while process.poll() is None and not any(cache.rglob("*.blob")):
                time.sleep(0.0005)
        else:
            assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    folder = cache / "openvino"
    if moves is not None:
        assert process.returncode == -signal.SIGKILL and list(folder.rglob("*.blob"))
        assert not list(folder.glob("*.json"))
    assert np.array_equal(_decoded(package), expected)
    (graph,) = graph_cache.graphs(folder)
    assert sidecar_path(graph.sidecar.with_suffix(".blob")) == graph.sidecar
    assert graph_cache.stray_files(folder) == []
    assert np.array_equal(_decoded(package), expected)


REMEMBER = """
from sdexport.engines.cache.file_states import FileState
from sdexport.engines.cache.remembered_hashes import remember
print("now", flush=True)
for number in range(10**9):
    remember([(FileState(1, number % 50, 2**30, 3, 4, "boot"), "a" * 64)])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("seed", range(3))
def test_killed_process_leaves_a_list_of_hashes_that_is_whole(
    seed: int, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache / "hashes" / NAME
    with subprocess.Popen([sys.executable, "-c", REMEMBER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        while process.poll() is None and not path.exists():
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    state = FileState(1, 99, 2**30, 3, 4, "boot")
    before = len(json.loads(path.read_text(encoding="utf-8"))["hashes"])
    remember([(state, "b" * 64)])
    remembered_hashes._known.clear()
    found = recall(state)
    assert found is not None and found.sha256 == "b" * 64
    assert len(json.loads(path.read_text(encoding="utf-8"))["hashes"]) == before + 1
    assert not list(path.parent.glob(".*.part")) and not caplog.records


FULL = f"""{DECODE}
import logging, os
from pathlib import Path
from sdexport.engines.cache.file_states import FileState
from sdexport.engines.cache.remembered_hashes import remember
from sdexport.engines.cache import graph_cache

logging.basicConfig(format="%(message)s", stream=sys.stdout)
os.environ["SDEXPORT_CACHE"] = sys.argv[2]
graph_cache.FREE_SHARE = float(sys.argv[4])
np.save(sys.argv[3], decoded(sys.argv[1]))
left = [file for file in Path(sys.argv[2]).rglob("*") if file.is_file()]
assert not [file for file in left if file.suffix in (".json", ".blob", ".part")], left
with Path(sys.argv[2], "filler").open("wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
remember([(FileState(1, 2, 2**30, 3, 4, "boot"), "a" * 64)])
"""


@pytest.mark.parametrize("asks", [True, False])
def test_full_disk_costs_one_line(
    asks: bool, package: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    """Where the room is asked for before, and where it is used up meanwhile."""
    disk, output = tmp_path / "disk", tmp_path / "output.npy"
    disk.mkdir()
    share = graph_cache.FREE_SHARE if asks else 0
    done = run_on_small_disk(FULL, disk, package, disk / "cache", output, share)
    assert done.returncode == 0, done.stderr
    graph, hashes = done.stdout.splitlines()
    assert graph.startswith(f"{DECODER}: its compiled graph is not cached: ")
    assert ("0.0 GB free" in graph) == asks
    assert hashes.startswith("hashes are not remembered: ") and "No space left on device" in hashes
    assert np.array_equal(np.load(output), expected)
    assert list(disk.iterdir()) == []
