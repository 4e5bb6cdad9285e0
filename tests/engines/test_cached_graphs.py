"""Graphs that ONNX Runtime has optimised, in the user's cache: the same bits, or not used."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import EngineError, Package, PackageError, load_pipeline
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.cache import graph_cache, processor_bound, remembered_hashes, user_cache
from sdexport.engines.cache.lock import locked
from sdexport.engines.ort import mapped_initializers, onnxruntime_session, widened_weights
from sdexport.engines.ort.prepared import cached_graph
from sdexport.engines.ort.prepared.prepared_session import PreparedSession
from sdexport.engines.temporary_files import TEMPORARY, temporary_file
from sdexport.runtime import store_graphs
from sdexport.runtime.component_engines import open_component
from tests.helpers.engine_damages import DAMAGES
from tests.helpers.stored_later import Graphs, check_images_before_and_after
from tests.helpers.two_starts import check_two_starts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kept on Linux only")
DECODER = "vae_decoder"
LATENTS = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    for module in (user_cache, remembered_hashes):
        module._warn_once.cache_clear()
    remembered_hashes._known.clear()
    monkeypatch.setattr(cached_graph, "_missing", {})
    return tmp_path / "cache" / "onnxruntime"


@pytest.fixture(scope="module")
def warm(package: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A cache folder that holds the decoder, and the decoder's output without it."""
    expected = decoded(package)
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(user_cache.VARIABLE, str(folder))
        user_cache._warn_once.cache_clear()
        store_graphs.store(package, [DECODER])
        assert np.array_equal(decoded(package), expected)
    assert list(folder.glob("onnxruntime/*.onnx"))
    return folder, expected


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of graphs that were optimised instead of mapped."""
    names: list[str] = []
    load = onnxruntime_session.load

    def counted(name: str, *arguments: Any, **model: Any) -> object:
        names.append(name)
        return load(name, *arguments, **model)

    monkeypatch.setattr(onnxruntime_session, "load", counted)
    return names


def decoded(package: Path, **options: object) -> np.ndarray:
    with open_component(Package.load(package), DECODER, **options) as session:
        return session.run({"latent_sample": LATENTS})["sample"]


def missing(package: Path) -> list[str]:
    """What the worker would be told to store."""
    loaded = Package.load(package)
    return cached_graph.missing_graphs({graph: loaded.model_path(graph) for graph in loaded.graphs})


def test_cached_pipeline_gives_the_same_bits_and_optimises_nothing(
    package: Path, cache: Path, optimised: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def image() -> bytes:
        with load_pipeline(package) as pipe:
            found = pipe("a", num_inference_steps=2, seed=0, width=64, height=64)
            assert found.parameters[0].engines == ()
            kinds.append(isinstance(pipe.session("unet"), PreparedSession))
        return found.images[0].tobytes()

    kinds: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setenv(user_cache.VARIABLE, user_cache.OFF)
        expected = image()
    assert image() == expected
    store_graphs.store(package, missing(package))
    optimised.clear()
    assert image() == expected
    assert optimised == [] and kinds == [False, False, True]
    names = {graph.plan.name.split(".")[1] for graph in graph_cache.graphs(cache)}
    assert names >= {"text_encoder", "unet", "vae_decoder"}
    assert graph_cache.stray_files(cache) == []


def test_other_sizes_and_batches_run_from_the_cached_graph(
    package: Path, cache: Path, warm: tuple[Path, np.ndarray], optimised: list[str]
) -> None:
    shutil.copytree(warm[0], cache.parent)
    latents = np.concatenate([LATENTS, LATENTS, LATENTS], axis=3)[..., :23].repeat(2, axis=0)
    with open_component(Package.load(package), DECODER) as session:
        found = session.run({"latent_sample": latents})["sample"]
    assert optimised == [] and found.shape == (2, 3, 64, 184)
    assert np.array_equal(found[0], found[1])


def test_float16_package_is_stored_too(
    half_package: Path, cache: Path, optimised: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(user_cache.VARIABLE, user_cache.OFF)
        expected = decoded(half_package)
    store_graphs.store(half_package, [DECODER])
    optimised.clear()
    assert np.array_equal(decoded(half_package), expected)
    assert graph_cache.graphs(cache) and optimised == []


@pytest.mark.parametrize("part", [".onnx", ".onnx_data"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_graph_is_optimised_again(
    part: str,
    damage: Callable[[Path], None],
    package: Path,
    cache: Path,
    warm: tuple[Path, np.ndarray],
    optimised: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(warm[0], cache.parent)
    (plan,) = cache.glob("*.onnx")
    about_sidecar = damage.__name__ in ("other_version", "no_json")
    damage(plan if about_sidecar else plan.with_suffix(part))
    assert np.array_equal(decoded(package), warm[1])
    assert optimised == [DECODER]
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(lines) <= 2 and all("\n" not in line for line in lines)
    assert missing(package) == [DECODER]
    store_graphs.store(package, [DECODER])
    optimised.clear()
    if damage.__name__ != "folder":
        assert np.array_equal(decoded(package), warm[1]) and optimised == []


def test_nothing_is_kept_of_altered_weights(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def altered(*_: object) -> None:
        raise PackageError("vae_decoder/model.onnx_data was altered")

    monkeypatch.setattr(Package, "check_hashes", altered)
    store_graphs.store(package, [DECODER])
    assert "was altered" in caplog.text
    assert not [file for file in cache.rglob("*") if file.is_file()]


@pytest.mark.parametrize("reason", ["memory", "disk", "limit", "options", "unverified"])
def test_nothing_is_kept_where_it_would_not_fit_or_is_not_known(
    reason: str, package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, object] = {}
    if reason == "memory":
        monkeypatch.setattr(cached_graph, "available_bytes", lambda: 0)
    elif reason == "disk":
        monkeypatch.setattr(graph_cache, "no_room", lambda *_, **__: "the disk is full")
    elif reason == "limit":
        monkeypatch.setenv(graph_cache.LIMIT_VARIABLE, "0")
    elif reason == "options":
        options = {"optimization": "basic"}
    loaded = Package.load(package, verify=reason != "unverified")
    with open_component(loaded, DECODER, **options) as session:
        assert np.isfinite(session.run({"latent_sample": LATENTS})["sample"]).all()
    assert missing(package) == ([] if reason in ("options", "unverified") else [DECODER])
    if missing(package):
        assert stored_later(package, monkeypatch) is None
        store_graphs.store(package, [DECODER])
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_what_killed_processes_left_is_deleted_unless_one_still_writes(
    package: Path, cache: Path, warm: tuple[Path, np.ndarray]
) -> None:
    shutil.copytree(warm[0], cache.parent)
    for name in ("dead", "alive"):
        folder = cache / f".{name}.abc{TEMPORARY}"
        folder.mkdir()
        (folder / "weights").write_bytes(bytes(1000))
    (cache / "old.lock").touch()
    with locked(cache / "alive.lock", "it"):
        decoded(package)
        assert not (cache / f".dead.abc{TEMPORARY}").exists()
        assert not (cache / "old.lock").exists()
        assert (cache / f".alive.abc{TEMPORARY}" / "weights").exists()
    decoded(package)
    assert graph_cache.stray_files(cache) == []


def test_sidecar_that_another_process_writes_is_left_alone(
    cache: Path, warm: tuple[Path, np.ndarray]
) -> None:
    shutil.copytree(warm[0], cache.parent)
    (graph,) = graph_cache.graphs(cache)
    dead = cache / f".{graph.sidecar.name}.0123456789abcdef{TEMPORARY}"
    dead.touch()
    with temporary_file(graph.sidecar) as (alive, _):
        graph_cache.note_use(graph.plan)
        assert alive.exists() and not dead.exists()


def test_files_without_a_sidecar_are_deleted_unless_one_is_being_written(
    cache: Path, warm: tuple[Path, np.ndarray]
) -> None:
    shutil.copytree(warm[0], cache.parent)
    (graph,) = graph_cache.graphs(cache)
    other = cache.with_name(graph_cache.OPENVINO)
    other.mkdir(mode=0o700)
    strays = [cache / "a.b.onnx", cache / "a.b.onnx_data", other / "c.blob", other / "c.once.blob"]
    for file in (*strays, other / "d.once.blob", other / "not_ours.txt"):
        file.write_bytes(b"0")
    with locked(other / "d.lock", "d"):
        assert graph_cache.evict(cache, keep=graph.plan) == 0
        assert (other / "d.once.blob").exists()
    assert not [file for file in strays if file.exists()]
    assert graph_cache.graphs(cache) == [graph] and (other / "not_ours.txt").exists()


def test_both_backends_share_the_bound(
    package: Path, cache: Path, warm: tuple[Path, np.ndarray]
) -> None:
    shutil.copytree(warm[0], cache.parent)
    (old,) = graph_cache.graphs(cache)
    os.utime(old.sidecar, (1, 1))
    other = cache.with_name(graph_cache.OPENVINO)
    other.mkdir(mode=0o700)
    (other / "b.json").write_text("{}")
    (other / "b.blob").write_bytes(bytes(1000))
    assert graph_cache.evict(other, keep=other / "b.blob", most=2000) == 1
    assert graph_cache.graphs(cache) == [] and len(graph_cache.graphs(other)) == 1


def test_command_line_stores_graphs_for_the_next_start(tmp_path: Path) -> None:
    """In a process that goes on when the command has ended."""
    check_two_starts(tmp_path, "*.optimized.json")


def test_nothing_is_started_if_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_graphs.subprocess, "Popen", None)  # would raise TypeError
    store_graphs.store_later(Package.load(PACKAGE_DIR, verify=False))


def test_worker_runs_no_module_of_the_current_folder(
    package: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "numpy.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(folder)
    assert stored_later(package, monkeypatch) == 0
    (graph,) = graph_cache.graphs(cache)
    assert DECODER in graph.plan.name


def stored_later(package: Path, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Exit status of the worker that stores the decoder; None if none was started."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    opened = {package / DECODER / "model.onnx": DECODER}
    with monkeypatch.context() as patch:
        patch.setattr(cached_graph, "_missing", opened)
        patch.setattr(store_graphs.subprocess, "Popen", start)
        store_graphs.store_later(Package.load(package))
    return started[0].wait(timeout=300) if started else None


def test_graphs_of_adapters_are_stored_later_too(
    xs_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(graphs: Graphs) -> None:
        assert graphs == {
            str(xs_folder / "package"): ["text_encoder", DECODER],  # the UNet does not run
            str(xs_folder / "xs"): ["control_embedding", "controlnet"],
        }

    check_images_before_and_after(
        xs_folder,
        cache,
        tmp_path,
        monkeypatch,
        backend="onnxruntime",
        check=check,
        between=lambda: monkeypatch.setattr(cached_graph, "_missing", {}),
    )


def test_graphs_of_other_packages_are_not_missing(tmp_path: Path, package: Path) -> None:
    inside = {"unet": package / "unet" / "model.onnx", "vae": package / "vae" / "model.onnx"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached_graph, "_missing", {inside["unet"]: "unet"})
        assert cached_graph.missing_graphs(inside) == ["unet"]
        below = {"unet": tmp_path / "unet" / "model.onnx"}
        assert cached_graph.missing_graphs(below) == []


def test_large_weights_that_stay_where_they_are_mapped_are_not_stored(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without copies of weights the bits of a product may be others."""
    with open_component(Package.load(package), "text_encoder") as session:
        assert session.mapped is None
    assert missing(package) == ["text_encoder"]
    store_graphs.store(package, ["text_encoder"])
    monkeypatch.setattr(cached_graph, "_missing", {})
    monkeypatch.setattr(mapped_initializers, "SMALLEST", 0)
    with open_component(Package.load(package), "text_encoder") as session:
        assert not isinstance(session, PreparedSession) and session.mapped
    assert missing(package) == []


def test_graph_whose_copies_of_weights_are_misplaced_is_tried_once(
    package: Path, cache: Path, optimised: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decoded(package)
    monkeypatch.setattr(cached_graph, "_missing", {})
    monkeypatch.setattr(cached_graph, "is_aligned", lambda plan: False)
    store_graphs.store(package, [DECODER])
    (graph,) = graph_cache.graphs(cache)
    assert [file.stat().st_size for file in graph.files] == [0]
    optimised.clear()
    assert np.array_equal(decoded(package), expected)
    assert optimised == [DECODER] and missing(package) == []


def test_another_kind_of_processor_has_a_graph_of_its_own(
    package: Path,
    cache: Path,
    warm: tuple[Path, np.ndarray],
    optimised: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(warm[0], cache.parent)
    with monkeypatch.context() as patch:
        for module in (cached_graph, processor_bound):
            patch.setattr(module, "kernel_target", lambda: {"machine": "another"})
        assert np.array_equal(decoded(package), warm[1]) and missing(package) == [DECODER]
        store_graphs.store(package, [DECODER])
    assert len(graph_cache.graphs(cache)) == 2
    optimised.clear()
    assert np.array_equal(decoded(package), warm[1])
    assert optimised == [] and not caplog.records


def test_one_process_stores_graphs_at_a_time(package: Path, cache: Path) -> None:
    place = graph_cache.folder(graph_cache.ONNXRUNTIME)
    assert place == cache
    with locked(cache / store_graphs._LOCK, "it"), pytest.raises(EngineError, match="another"):
        store_graphs.store(package, [DECODER])
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("half", [False, True])
def test_disk_must_hold_converted_weights_as_well(
    half: bool, package: Path, half_package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened_weights, "SMALLEST", 1)
    path = (half_package if half else package) / "text_encoder" / "model.onnx"
    assert cached_graph.shortage(path) == ""
    weights = cached_graph._float32_bytes(path)
    free = int((graph_cache.FREE_SHARE + 0.5) * weights)
    usage = shutil.disk_usage(cache)._replace(free=free)
    monkeypatch.setattr(graph_cache.shutil, "disk_usage", lambda place: usage)
    assert bool(cached_graph.shortage(path)) == half
