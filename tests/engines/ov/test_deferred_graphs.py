"""Graphs that a process compiles and another one stores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", exc_type=ImportError)

from sdexport import Package
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.cache import graph_cache, user_cache
from sdexport.engines.ov import deferred_graphs
from sdexport.engines.ov.compiled_graph import Variant
from sdexport.engines.ov.compiler import Compiler
from sdexport.runtime import store_graphs
from sdexport.runtime.component_engines import open_component
from tests.helpers.stored_later import Graphs, check_images_before_and_after
from tests.helpers.two_starts import check_two_starts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="deferred on Linux only")
DECODER = "vae_decoder"
LATENTS = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
VARIANTS = [
    Variant("f32", True, None),
    Variant("bf16", False, {"a": (1, 2), "b": ()}, frozenset({"b"}), frozenset({"a"})),
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    user_cache._warn_once.cache_clear()
    monkeypatch.setattr(deferred_graphs, "_deferred", {})
    return tmp_path / "cache" / "openvino"


def decoded(package: Path) -> np.ndarray:
    loaded = Package.load(package)
    with open_component(loaded, DECODER, "openvino") as session:
        return session.run({"latent_sample": LATENTS})["sample"]


def noted(package: Path) -> list[str]:
    """What the worker would be told to store."""
    loaded = Package.load(package)
    paths = {graph: loaded.model_path(graph) for graph in loaded.graphs}
    found = deferred_graphs.deferred(paths)
    return [json.dumps({"graph": graph, **variant.options()}) for graph, variant in found]


@pytest.mark.parametrize("variant", VARIANTS)
def test_options_say_all_about_a_variant(variant: Variant) -> None:
    assert Variant.from_options(json.loads(json.dumps(variant.options()))) == variant


def test_graph_is_stored_later_and_gives_the_same_bits(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_graphs.defer(Package.load(package))
    expected = decoded(package)
    assert graph_cache.graphs(cache) == [] and len(noted(package)) == 1
    store_graphs.store(package, noted(package))
    (graph,) = graph_cache.graphs(cache)
    assert DECODER in graph.plan.name and graph_cache.stray_files(cache) == []
    monkeypatch.setattr(Compiler, "_new", None)  # would raise TypeError
    assert np.array_equal(decoded(package), expected)


def test_graph_that_is_compiled_again_is_stored_at_once(package: Path, cache: Path) -> None:
    """Low memory closes it after each image."""
    store_graphs.defer(Package.load(package))
    expected = decoded(package)
    assert np.array_equal(decoded(package), expected)
    assert len(graph_cache.graphs(cache)) == 1 and noted(package) == []


def test_worker_reads_thousands_of_inputs(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux limits one argument of a command to 128 KiB."""
    shapes = {f"down_blocks.{i}.attentions.to_q.lora_A": (2, 1280, 16) for i in range(4000)}
    variant = Variant("f32", True, shapes, frozenset(shapes))
    loaded, read = Package.load(package), list[str]()
    path = loaded.model_path(DECODER)
    monkeypatch.setattr(deferred_graphs, "_deferred", {path: [variant]})
    monkeypatch.setattr(store_graphs, "_has_room", lambda *_: True)

    def start(command: list[str], *, stdin: Any, **_: Any) -> None:
        assert all(len(argument) < 128 * 1024 for argument in command)
        read.extend(json.load(stdin)[str(package)])

    monkeypatch.setattr(store_graphs.subprocess, "Popen", start)
    store_graphs.store_later(loaded)
    assert [Variant.from_options(json.loads(each)) for each in read] == [variant]


def test_other_packages_store_while_they_compile(package: Path, cache: Path) -> None:
    store_graphs.defer(Package.load(PACKAGE_DIR, verify=False))
    decoded(package)
    assert len(graph_cache.graphs(cache)) == 1 and noted(package) == []


def test_graphs_of_adapters_are_stored_later_too(
    xs_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one process, as there is one at a time."""

    def check(graphs: Graphs) -> None:
        names = {folder: {json.loads(g)["graph"] for g in each} for folder, each in graphs.items()}
        assert names == {
            str(xs_folder / "package"): {"text_encoder", DECODER},  # the UNet does not run
            str(xs_folder / "xs"): {"control_embedding", "controlnet"},
        }

    def nothing_compiles() -> None:
        monkeypatch.setattr(deferred_graphs, "_deferred", {})
        monkeypatch.setattr(Compiler, "_new", None)  # would raise TypeError

    check_images_before_and_after(
        xs_folder,
        cache,
        tmp_path,
        monkeypatch,
        backend="openvino",
        check=check,
        between=nothing_compiles,
    )


@pytest.mark.parametrize("lacks", ["memory", "disk"])
def test_nothing_is_started_where_there_is_no_room(
    lacks: str, package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_graphs.defer(Package.load(package))
    decoded(package)
    assert len(noted(package)) == 1
    if lacks == "memory":
        monkeypatch.setattr(deferred_graphs, "available_bytes", lambda: 0)
    else:
        monkeypatch.setenv(graph_cache.LIMIT_VARIABLE, "0")
    monkeypatch.setattr(store_graphs.subprocess, "Popen", None)  # would raise TypeError
    store_graphs.store_later(Package.load(package))
    store_graphs.store(package, noted(package))
    assert graph_cache.graphs(cache) == []


def test_command_line_stores_graphs_for_the_next_start(tmp_path: Path) -> None:
    """In a process that goes on when the command has ended."""
    check_two_starts(tmp_path, "openvino/*.json", "--backend", "openvino")
