"""Verification runs what a pipeline runs: each way to run a graph is broken once, and found."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import InvalidArgumentError, MissingDependencyError, Package
from sdexport.builds.prepare_onnxruntime import prepare_graph
from sdexport.engines import Session, SessionBase
from sdexport.engines.session import BoundSession, Feeds, GraphSource
from sdexport.runtime import component_sessions
from sdexport.runtime.component_engines import engine_path, open_component, package_binding
from sdexport.verification import replay
from sdexport.verification.advice import advice
from sdexport.verification.text_report import conclusion, remarks, table
from sdexport.verification.verification_result import Verification
from sdexport.verification.verifier import verify_package
from tests.helpers.altered_models import alter_weight

pytest.importorskip("onnxruntime")


class Around(SessionBase):
    """A session that calls another one; subclasses are wrong in one way.

    least: the smallest height of latents that it takes. form: see GraphSource.
    """

    least = 1
    form = ""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner.name, inner.inputs, inner.outputs)
        self.inner = inner

    def source(self, feeds: Feeds) -> GraphSource:
        path = self.inner.source(feeds).path
        if not self.form or path is None:
            return GraphSource(path)
        return GraphSource(path.with_suffix(".plan"), self.form)

    def nearest_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {k: max(v, self.least) if k == "height" else v for k, v in sizes.items()}

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self.inner.run(feeds)

    def _release(self) -> None:
        self.inner.close()


class _WrongBound(BoundSession):
    wrong: str = "constants"

    def _all_feeds(self, feeds: Feeds) -> dict[str, np.ndarray]:
        found = super()._all_feeds(feeds)
        if self.wrong == "constants" or self._shared:
            found["encoder_hidden_states"] = found["encoder_hidden_states"][::-1].copy()
        return found


class _WrongShared(_WrongBound):
    wrong = "shared"


class WrongBind(Around):
    """Binds the embeddings of the other half."""

    bound: type[_WrongBound] = _WrongBound

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return self.bound(self, constants, shared)


class WrongShared(WrongBind):
    """Is wrong only if an input is shared by both halves."""

    bound = _WrongShared


class OnlyLarge(Around):
    """An engine that takes no latents as small as those of the reference; otherwise right."""

    least, form = 12, "plan"

    def source(self, feeds: Feeds) -> GraphSource:
        self._check(feeds)
        return super().source(feeds)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check(feeds)
        return super()._compute(feeds)

    def _check(self, feeds: Feeds) -> None:
        height = feeds["sample"].shape[2]
        if height < self.least:
            raise InvalidArgumentError(f"unet: the engine takes no height {height}")


class OnlyLargeAndWrong(OnlyLarge):
    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return {name: value * 1.01 for name, value in super()._compute(feeds).items()}


def verified(
    package: Path, monkeypatch: pytest.MonkeyPatch, around: type[Around], **options: Any
) -> Verification:
    """The verification of a package whose UNet is run by a session of this class."""

    def opened(loaded: Package, graph: str, *arguments: Any, **given: Any) -> Session:
        session = open_component(loaded, graph, *arguments, **given)
        return around(session) if graph == "unet" else session

    monkeypatch.setattr(component_sessions, "open_component", opened)
    return verify_package(Package.load(package, verify=False), hashes=False, **options)


def failed_ways(found: Verification) -> set[tuple[str, str]]:
    return {(check.name, check.way) for check in found.failed}


def test_a_wrong_bind_fails_its_own_rows(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(package, monkeypatch, WrongBind)
    expected = {("unet", "bound inputs"), ("unet", "bound and shared inputs"), ("image", "")}
    assert failed_ways(found) == expected
    assert any("unet with bound inputs: onnxruntime computes" in line for line in advice(found))


def test_wrong_shared_inputs_fail_their_own_row(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verified(package, monkeypatch, WrongShared, only="unet")
    assert failed_ways(found) == {("unet", "bound and shared inputs")}


def test_low_memory_runs_without_the_session_s_own_bind(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline with low_memory never calls it, so neither does its verification."""
    assert verified(package, monkeypatch, WrongBind, low_memory=True, only="unet").passed


def test_an_engine_is_run_at_a_size_that_it_takes(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verified(package, monkeypatch, OnlyLarge, only="unet")
    rows = [check for check in found if check.name == "unet"]
    assert found.passed, table(found)
    assert {row.way for row in rows} == {replay.RUN, replay.BOUND, replay.SHARED}
    for row in rows:
        assert (row.file, row.form) == ("unet/model.plan", "plan")
        assert row.compared_with == "unet/model.onnx in onnxruntime"
        assert row.inputs == "2x4x16x16, 77 tokens"
    assert "unet on its reference inputs: unet: the engine takes no height 10" in conclusion(found)


def test_a_wrong_engine_fails_at_a_size_that_it_takes(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verified(package, monkeypatch, OnlyLargeAndWrong, only="unet")
    assert {check.name for check in found.failed} >= {"unet"}
    assert all(check.form == "plan" for check in found.failed if check.name == "unet")
    assert "unet: delete unet/model.plan, and build it again" in advice(found)[0]


def test_an_engine_that_nothing_can_be_compared_with_is_named(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingDependencyError("ONNX Runtime is not installed")

    monkeypatch.setattr(replay, "open_component", missing)
    found = verified(package, monkeypatch, OnlyLarge, only="unet")
    assert "not checked: unet at 2x4x16x16, 77 tokens: ONNX Runtime is not installed" in (
        conclusion(found)
    )


@pytest.fixture(scope="module")
def prepared(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the folder of an engine of the UNet, prepared from its graph or from another one."""
    pytest.importorskip("onnx_ir")
    made: dict[float, Path] = {}

    def prepare(factor: float) -> Path:
        if factor not in made:
            folder = made[factor] = tmp_path_factory.mktemp("engines")
            model = shutil.copytree(package / "unet", folder / "unet") / "model.onnx"
            alter_weight(model, factor)
            loaded = Package.load(package, verify=False)
            plan = engine_path(loaded, "unet", "onnxruntime", folder)
            plan.parent.mkdir()
            digest, binding = loaded.model_digest("unet"), package_binding(loaded)
            prepare_graph(model, plan, component="unet", digest=digest, package=binding)
        return made[factor]

    return prepare


def test_a_prepared_graph_is_run_and_so_is_what_it_falls_back_to(
    package: Path, prepared: Callable[..., Path]
) -> None:
    options = {"engine_dir": prepared(1.0), "only": "unet"}
    found = verify_package(Package.load(package, verify=False), hashes=False, **options)
    assert found.passed and not found.not_checked, table(found)
    rows = [(c.form, c.way, c.inputs, bool(c.compared_with)) for c in found if c.name == "unet"]
    ways = (replay.RUN, replay.BOUND, replay.SHARED)
    assert rows == [
        *(("", way, "", False) for way in ways),
        *(("prepared", way, "2x4x16x16, 77 tokens", True) for way in ways),
    ]


@pytest.mark.parametrize("low_memory", [False, True])
def test_rotten_prepared_weights_fail_the_rows_that_name_them(
    package: Path, prepared: Callable[..., Path], low_memory: bool
) -> None:
    """Weights that were altered before the sidecar was written, so every hash agrees."""
    folder = prepared(1.1)
    options = {"engine_dir": folder, "low_memory": low_memory, "only": "unet"}
    found = verify_package(Package.load(package, verify=False), hashes=False, **options)
    rows = [check for check in found if check.name == "unet"]
    assert [check.passed for check in rows] == [not check.form for check in rows]
    assert {check.form for check in rows} == {"", "prepared"}
    plan = (folder / "onnxruntime" / "unet.onnx").as_posix()
    assert {check.file for check in found.failed} == {plan}
    assert advice(found)[0].startswith(f"unet: delete {plan}, and build it again")


def test_a_prepared_graph_that_is_not_used_is_named(
    package: Path, prepared: Callable[..., Path]
) -> None:
    folder = prepared(1.0)
    options = {"engine_dir": folder, "optimization": "basic"}
    found = verify_package(Package.load(package, verify=False), hashes=False, **options)
    assert found.passed
    rows = [check for check in found if check.name == "unet"]
    assert {check.file for check in rows} == {"unet/model.onnx"}
    assert all("prepared graphs run only with the default" in check.remark for check in rows)
    assert remarks(found) == [f"unet: {rows[0].remark}"]
    assert conclusion(found).endswith("onnxruntime was not run: unet.onnx")


def test_tiles_are_compared_with_plain_tiles(package: Path) -> None:
    loaded = Package.load(package, verify=False)
    found = verify_package(loaded, hashes=False, vae_tile=64)
    assert found.passed, table(found)
    assert {check.name for check in found if check.way == replay.TILED} == {
        "vae_decoder",
        "vae_encoder",
    }
    assert "the image in tiles" in conclusion(found)
    whole = verify_package(loaded, hashes=False, vae_tile=128, only="vae_decoder")
    assert [check.way for check in whole] == [replay.RUN]


def test_engines_of_other_backends_are_named(package_copy: Path) -> None:
    folder = package_copy / "engines" / "tensorrt-rtx"
    folder.mkdir(parents=True)
    (folder / "unet.plan").write_bytes(b"plan")
    found = verify_package(Package.load(package_copy), hashes=False)
    assert found.passed
    assert found.not_checked == ("engines/tensorrt-rtx was not run: unet.plan",)


def test_a_token_graph_without_engine_runs_as_in_a_pipeline(package_copy: Path) -> None:
    """Its backend has no plan for it, so it runs on another one."""
    from sdexport.runtime.pipeline import Pipeline

    with Pipeline(Package.load(package_copy), {"text_encoder": "tensorrt-rtx"}) as pipe:
        name = pipe.opened_with("text_encoder.inputs_embeds").name
    assert name in ("onnxruntime", "openvino")


def test_openvino_compiles_anew_for_each_way(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each session is compiled once, for the shapes and bound inputs of one way, as in a pipeline.

    The pipeline's own session goes on to generate the image without another compilation.
    """
    pytest.importorskip("openvino")
    from sdexport.engines.ov.openvino_session import OpenVinoSession

    compiled: list[tuple[int, bool]] = []
    plain = OpenVinoSession._compile

    def watched(self: Any, shapes: Any, bound: Any) -> Any:
        if self.name == "unet":
            compiled.append((id(self), shapes is not None))
        return plain(self, shapes, bound)

    monkeypatch.setattr(OpenVinoSession, "_compile", watched)
    kept: list[Session] = []  # so that no two sessions have the same id

    def opened(*arguments: Any, **given: Any) -> Session:
        kept.append(open_component(*arguments, **given))
        return kept[-1]

    monkeypatch.setattr(component_sessions, "open_component", opened)
    backends = {"unet": "openvino"}
    found = verify_package(Package.load(package, verify=False), backends, hashes=False)
    assert found.passed, table(found)
    assert len(compiled) == len(set(compiled)) == 4 and all(static for _, static in compiled)
    last = [check for check in found if check.compared_with]
    assert [(c.name, c.way, c.inputs) for c in last] == [
        ("unet", replay.SHARED, "2x4x16x16, 77 tokens")
    ]


def test_low_memory_opens_one_graph_at_a_time(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two backends, of which one compiles anew, in float32, plainly and for the image."""
    pytest.importorskip("openvino")
    from sdexport.engines.ort import float32_session

    opened: list[Any] = []
    most: set[int] = set()

    def watched(opens: Callable[..., Any]) -> Callable[..., Any]:
        def open_watched(*arguments: Any, **given: Any) -> Any:
            opened.append(opens(*arguments, **given))
            most.add(sum(not session._closed for session in opened))
            return opened[-1]

        return open_watched

    for module in (component_sessions, replay):
        monkeypatch.setattr(module, "open_component", watched(open_component))
    exact = watched(float32_session.open_float32)
    monkeypatch.setattr(float32_session, "open_float32", exact)
    loaded = Package.load(package, verify=False)
    options = {"vae_tile": 64, "low_memory": True, "precision": "bf16"}
    found = verify_package(loaded, {"vae_decoder": "openvino"}, hashes=False, **options)
    assert found.passed, table(found)
    assert any(check.value("float32_max_abs") is not None for check in found)
    assert most == {1}
