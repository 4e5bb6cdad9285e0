"""Compiled graphs on disk: the same outputs, and nothing that is damaged is ever opened."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", exc_type=ImportError)

from sdexport import Package, PackageError, load_pipeline
from sdexport.builds.engine_builder import EngineSizes, build
from sdexport.engines.cache import graph_cache
from sdexport.engines.cache import user_cache as user_cache_module
from sdexport.engines.cache.profiles import Span
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.ov import compiled_graph
from sdexport.engines.ov.blob_file import plugin_offset
from sdexport.engines.ov.compiled_graph import fresh_plans, installed_version, plans_of
from sdexport.engines.ov.compiler import Compiler
from sdexport.engines.ov.openvino_session import OpenVinoSession
from sdexport.engines.session import Session
from sdexport.runtime.component_engines import open_component, package_binding
from tests.helpers.engine_damages import DAMAGES, link, rotten

DECODER = "vae_decoder"
LATENTS = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDEXPORT_CACHE", str(tmp_path / "cache"))
    user_cache_module._warn_once.cache_clear()
    return tmp_path / "cache" / "openvino"


@pytest.fixture(scope="module")
def warm(package: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A cache folder that holds the decoder, and the decoder's output."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDEXPORT_CACHE", str(folder))
        user_cache_module._warn_once.cache_clear()
        output = decoded(package)
    assert list(folder.glob("openvino/*.blob"))
    return folder, output


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of graphs that were compiled instead of opened."""
    names: list[str] = []
    new = Compiler._new

    def counted(self: Compiler, *arguments: object, **options: object) -> object:
        names.append(self._name)
        return new(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Compiler, "_new", counted)
    return names


def decoded(package: Path, **options: object) -> np.ndarray:
    with open_component(Package.load(package), DECODER, "openvino", **options) as session:
        return session.run({"latent_sample": LATENTS})["sample"]


@pytest.mark.parametrize("precision", ["f32", "bf16", "i8"])
def test_cached_graph_gives_the_same_output(
    precision: str, package: Path, cache: Path, compilations: list[str]
) -> None:
    with OpenVinoSession(package / DECODER / "model.onnx", precision=precision) as plain:
        expected = plain.run({"latent_sample": LATENTS})["sample"]
    compilations.clear()
    outputs = [decoded(package, precision=precision) for _ in range(2)]
    assert compilations == [DECODER]
    assert all(np.array_equal(output, expected) for output in outputs)
    assert all(file.stat().st_mode & 0o077 == 0 for file in cache.glob("*.blob"))


def test_bound_and_shared_inputs_are_cached_too(
    package: Path, cache: Path, compilations: list[str]
) -> None:
    rng = np.random.default_rng(0)
    text = rng.standard_normal((2, 77, 96), dtype=np.float32)
    feeds = {
        "sample": rng.standard_normal((1, 4, 8, 8), dtype=np.float32),
        "timestep": np.array([500], np.int64),
    }

    def run(session: Session) -> np.ndarray:
        feeds["timestep"] = feeds["timestep"].astype(session.inputs[1].dtype)
        with session.bind(shared=("sample",), encoder_hidden_states=text) as bound:
            return bound.run(feeds)["out_sample"]

    found = []
    for _ in range(2):
        with open_component(Package.load(package), "unet", "openvino") as session:
            found.append(run(session))
    assert compilations == ["unet"]
    assert np.array_equal(*found)
    assert len(list(cache.glob("*.once.blob"))) == 1


PLACES = [*(("cache", damage) for damage in DAMAGES), ("prepared", rotten), ("prepared", link)]


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("place, damage", PLACES)
def test_damaged_graph_is_compiled_again(
    place: str,
    damage: Callable[[Path], None],
    package: Path,
    cache: Path,
    warm: tuple[Path, np.ndarray],
    tmp_path: Path,
    compilations: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options: dict[str, Path] = {}
    shutil.copytree(warm[0], cache.parent)
    (blob,) = cache.glob("*.blob")
    if place == "prepared":  # of the same form, but for the name and the package
        options = {"engine_dir": tmp_path / "engines"}
        small = EngineSizes(height=Span(64, 64, 64), width=Span(64, 64, 64))
        build(package, "openvino", sizes=small, components=[DECODER], **options)
        (blob,) = (tmp_path / "engines" / "openvino").glob("*.blob")
        shutil.rmtree(cache)
    damage(blob)
    expected = warm[1]
    assert np.array_equal(decoded(package, **options), expected)
    assert compilations == [DECODER]
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(warnings) <= 2 and all("\n" not in message for message in warnings)


def test_cache_that_cannot_be_written_costs_one_line(
    package: Path,
    cache: Path,
    warm: tuple[Path, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = warm[1]

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device", str(cache))

    monkeypatch.setattr(graph_cache, "no_room", full)
    assert np.array_equal(decoded(package), expected)
    monkeypatch.undo()
    monkeypatch.setenv("SDEXPORT_CACHE", str(cache.parent))
    monkeypatch.setenv("SDEXPORT_CACHE_GB", "0")
    assert np.array_equal(decoded(package), expected)
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["No space left" in lines[0], "it may need" in lines[1]] == [True, True]
    assert not list(cache.glob("*.blob"))


def test_incomplete_export_is_not_kept(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is full while OpenVINO writes gives a short file, and no error."""
    compile_now = Compiler._new

    def cut(self: Compiler, *arguments: object, **options: object) -> object:
        made = compile_now(self, *arguments, **options)  # type: ignore[arg-type]
        for folder in options.get("caches") or ():  # type: ignore[attr-defined]
            for blob in Path(folder).glob("*.blob"):
                blob.chmod(0o600)
                os.truncate(blob, blob.stat().st_size - 1)
        return made

    monkeypatch.setattr(Compiler, "_new", cut)
    assert decoded(package).shape == (1, 3, 64, 64)
    assert not list(cache.glob("*.blob")) and not list(cache.glob("*.json"))
    assert "is not stored" in caplog.text


def test_least_recently_used_graph_goes_first(
    package: Path, cache: Path, warm: tuple[Path, np.ndarray]
) -> None:
    shutil.copytree(warm[0], cache.parent)
    (old,) = graph_cache.graphs(cache)
    os.utime(old.sidecar, (1, 1))
    decoded(package, precision="bf16")
    (_, new) = graph_cache.graphs(cache)
    assert graph_cache.evict(cache, most=new.size + 1) == 1
    assert graph_cache.graphs(cache) == [new]
    assert graph_cache.stray_files(cache) == []


def test_unverified_package_leaves_the_cache_alone(package: Path, cache: Path) -> None:
    for folder in (Package.load(package, verify=False), Package.load(package)):
        with open_component(folder, DECODER, "openvino") as session:
            session.run({"latent_sample": LATENTS})
        is_verified = folder.hashes is not None
        assert bool(list(cache.glob("*.blob"))) == is_verified


@pytest.mark.parametrize("is_cached", [False, True])
def test_altered_weights_are_neither_run_nor_kept(
    is_cached: bool,
    package: Path,
    cache: Path,
    warm: tuple[Path, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their hashes are computed while a graph is compiled or opened."""

    def altered(*_: object) -> None:
        raise PackageError("vae_decoder/model.onnx_data was altered")

    if is_cached:
        shutil.copytree(warm[0], cache.parent)
    before = sorted(cache.rglob("*"))
    monkeypatch.setattr(Package, "check_hashes", altered)
    with pytest.raises(PackageError, match="was altered"):
        decoded(package)
    assert [path for path in sorted(cache.rglob("*")) if path.is_file()] == before


def test_two_processes_share_a_cache(package: Path, cache: Path) -> None:
    program = (
        "import sys, hashlib\n"
        "from sdexport import load_pipeline\n"
        "with load_pipeline(sys.argv[1], 'openvino') as pipe:\n"
        "    image = pipe('a', num_inference_steps=1, seed=0, width=64, height=64).images[0]\n"
        "print(hashlib.sha256(image.tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", program, str(package)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert len(set(outputs)) == 1
    assert len(graph_cache.graphs(cache)) == 3


def test_prepared_pipeline_compiles_nothing_and_says_what_it_ran(
    package: Path, tmp_path: Path, compilations: list[str]
) -> None:
    small = EngineSizes(height=Span(64, 64, 64), width=Span(64, 64, 64))
    with load_pipeline(package, "openvino") as pipe:
        expected = pipe("a", num_inference_steps=1, seed=0, width=64, height=64)
    engine_dir = tmp_path / "engines"
    built = build(package, "openvino", sizes=small, engine_dir=engine_dir)
    assert all(one.built for one in built)
    again = build(package, "openvino", sizes=small, engine_dir=engine_dir)
    assert not any(one.built for one in again)
    compilations.clear()
    with load_pipeline(package, "openvino", engine_dir=engine_dir) as pipe:
        found = pipe("a", num_inference_steps=1, seed=0, width=64, height=64)
    assert compilations == []
    assert found.images[0].tobytes() == expected.images[0].tobytes()
    assert found.parameters[0].engines == ("text_encoder", "unet", "vae_decoder")
    loaded = Package.load(package)
    asked = {"digest": loaded.model_digest("unet"), "package": package_binding(loaded)}
    folder = engine_dir / "openvino"
    assert fresh_plans(folder, "unet", version=installed_version(), **asked)
    assert not fresh_plans(folder, "unet", version="2020.1", **asked)
    assert not fresh_plans(folder, "unet", version=None, precision="bf16", **asked)
    assert [compiled_graph.graph_of(plan) for plan in plans_of(folder, "unet")] == ["unet"]


def test_one_size_is_prepared_at_a_time(package: Path, tmp_path: Path) -> None:
    for sizes, says in (
        (EngineSizes(height=Span(64, 64, 128)), "one size at a time"),
        (EngineSizes(width=Span(60, 60, 60)), "multiple"),
    ):
        with pytest.raises(InvalidArgumentError, match=says):
            build(package, "openvino", sizes=sizes, engine_dir=tmp_path)
    with pytest.raises(InvalidArgumentError, match="precision"):
        build(package, "openvino", precision="f64", engine_dir=tmp_path)


def test_killed_build_leaves_nothing_that_is_opened(
    package: Path, cache: Path, warm: tuple[Path, np.ndarray]
) -> None:
    shutil.copytree(warm[0], cache.parent)
    (graph,) = graph_cache.graphs(cache)
    graph.sidecar.unlink()  # written last
    assert graph_cache.graphs(cache) == []
    assert graph_cache.stray_files(cache) == list(graph.files)
    assert decoded(package).shape == (1, 3, 64, 64)
    assert len(graph_cache.graphs(cache)) == 1


@pytest.mark.parametrize(
    "content", [b"", b"<?xml\n", b"<?xml" + b" " * 9000, b"\n" * 50, b"x" * 99]
)
def test_file_of_another_form_is_rejected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.blob").write_bytes(content)
    with pytest.raises(ValueError, match=r"does not begin|another form|damaged"):
        plugin_offset(tmp_path / "a.blob")


def test_no_folder_has_no_graphs(tmp_path: Path) -> None:
    assert plans_of(tmp_path / "none", "unet") == []
