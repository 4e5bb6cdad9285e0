"""Real builds with TensorRT-RTX, which needs no GPU for them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from sdexport.engines import EngineError, cuda_device
from sdexport.engines.cache.lock import locked
from sdexport.engines.cache.profiles import Profile, Span
from sdexport.engines.cache.sidecar import Sidecar, model_digest, sidecar_path
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.trt.build_options import BuildOptions
from sdexport.engines.trt.build_worker import MAX_MESSAGES, _summary
from sdexport.engines.trt.engine_build import Built, build_plan
from sdexport.engines.trt.engine_layers import layers_path
from sdexport.engines.trt.library import LIBRARIES
from sdexport.engines.trt.library_calls import LibraryCalls
from sdexport.engines.trt.supported_gpus import listed
from sdexport.engines.trt.unsupported_nodes import MOST_NODES, NodeError, explained
from sdexport.engines.worker_process import run_in_worker

pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
pytest.importorskip("polygraphy")

HEADER, TARGETS = 64, 32
"""Bytes of the header of a plan of TensorRT-RTX 1.7, and the one that holds its targets."""
PROFILE: Profile = {"batch": Span(1, 2, 4), "sequence": Span(77, 77, 77)}


@pytest.fixture(scope="module")
def built(package: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, list[Any]]:
    progress: list[Any] = []
    plan = tmp_path_factory.mktemp("built") / "new" / "text_encoder.plan"
    result = build(package, plan, progress=lambda phase, share: progress.append((phase, share)))
    return result, progress


@pytest.fixture
def plan(built: tuple[Built, list[Any]], tmp_path: Path) -> Path:
    """A copy of a plan with its sidecar."""
    source = built[0].plan
    for name in (source.name, sidecar_path(source).name, layers_path(source).name):
        shutil.copy(source.parent / name, tmp_path / name)
    return tmp_path / source.name


def build(package: Path, plan: Path, **changes: Any) -> Built:
    arguments: dict[str, Any] = {"backend": "tensorrt-rtx", "profiles": [PROFILE]}
    return build_plan(package / "text_encoder" / "model.onnx", plan, **arguments | changes)


def test_build_writes_plan_and_sidecar_and_nothing_else(
    built: tuple[Built, list[Any]], package: Path
) -> None:
    result, _ = built
    assert result.built and result.plan.stat().st_size > 1_000_000
    assert sorted(p.name for p in result.plan.parent.iterdir()) == [
        "text_encoder.json",
        "text_encoder.layers.json",
        "text_encoder.plan",
    ]
    sidecar = Sidecar.read(result.plan)
    assert sidecar == result.sidecar
    assert sidecar.onnx_sha256 == model_digest(package / "text_encoder" / "model.onnx")
    assert sidecar.target == {"compute_capabilities": "portable"}
    assert sidecar.library_version == LIBRARIES["tensorrt-rtx"].version()
    assert [spec.name for spec in sidecar.inputs] == ["input_ids"]
    assert sidecar.outputs[0].name == "last_hidden_state"


def test_build_reports_its_phases(built: tuple[Built, list[Any]]) -> None:
    phases, shares = zip(*built[1], strict=True)
    assert len(set(phases)) > 4 and phases[0] == "Building engine" and phases[-1] == "done"
    assert list(shares) == sorted(shares) and shares[-1] == 1.0
    assert any(0 < share < 1 for share in shares)


def test_build_keeps_an_engine_that_is_up_to_date(package: Path, plan: Path) -> None:
    before = plan.stat().st_mtime_ns
    assert not build(package, plan).built
    assert plan.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"profiles": [{**PROFILE, "batch": Span(1, 1, 1)}]},
            "profiles batch 1:2:4, seq.* instead",
        ),
        ({"options": BuildOptions(optimization_level=1)}, "optimization level None instead of 1"),
        ({"options": BuildOptions(workspace=10**9)}, "workspace None instead of 1000000000"),
        ({"digest": "0" * 64}, "built from another ONNX file"),
        (
            {"options": BuildOptions(compute_capabilities=("8.9",))},
            r"compute capabilities portable instead of 8\.9",
        ),
    ],
)
def test_build_names_what_is_stale(
    package: Path, plan: Path, changes: dict[str, Any], words: str
) -> None:
    before = plan.read_bytes()
    with pytest.raises(EngineError, match=f"is stale: .*{words}.*--rebuild-stale"):
        build(package, plan, **changes)
    assert plan.read_bytes() == before


def test_build_replaces_stale_and_damaged_plans(package: Path, plan: Path) -> None:
    options = BuildOptions(compute_capabilities=("8.9", "12.0"), weight_streaming=True)
    profiles = [PROFILE, {**PROFILE, "batch": Span(2, 2, 2)}]
    result = build(package, plan, options=options, profiles=profiles, rebuild_stale=True)
    assert result.built and result.sidecar.target == {"compute_capabilities": "8.9, 12.0"}
    assert result.sidecar.profiles == tuple(profiles)
    os.truncate(plan, 100)
    with pytest.raises(EngineError, match=r"truncated or altered.*--rebuild-stale"):
        build(package, plan)
    assert build(package, plan, rebuild_stale=True).built
    sidecar_path(plan).write_text("{")
    with pytest.raises(EngineError, match=r"text_encoder\.json is damaged.*--rebuild-stale"):
        build(package, plan)


def test_build_of_another_graph_is_stale(package: Path, plan: Path, tmp_path: Path) -> None:
    other = onnx.load(package / "text_encoder" / "model.onnx")
    other.doc_string = "another"
    (tmp_path / "text_encoder").mkdir()
    onnx.save(other, tmp_path / "text_encoder" / "model.onnx")
    with pytest.raises(EngineError, match="built from another ONNX file"):
        build(tmp_path, plan)


def test_build_interrupted_leaves_no_files(package: Path, tmp_path: Path) -> None:
    def interrupt(phase: str, share: float) -> None:
        if share > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(package, tmp_path / "text_encoder.plan", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_build_locked_against_a_second_one(package: Path, tmp_path: Path) -> None:
    plan = tmp_path / "text_encoder.plan"
    with (
        locked(tmp_path / "text_encoder.lock", "it"),
        pytest.raises(
            EngineError, match=rf"being built by another process \(process {os.getpid()}"
        ),
    ):
        build(package, plan)
    assert list(tmp_path.iterdir()) == []


def test_build_in_two_threads_builds_once(package: Path, tmp_path: Path) -> None:
    plan, results = tmp_path / "text_encoder.plan", []

    def work() -> None:
        try:
            results.append(build(package, plan).built)
        except EngineError as error:
            results.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True in results and results.count(True) == 1
    assert Sidecar.read(plan)


def odd_model(path: Path, operator: str) -> Path:
    node = helper.make_node(operator, ["x"], ["y"], name="the_odd_node")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_build_failure_names_the_node(tmp_path: Path) -> None:
    model = odd_model(tmp_path / "model.onnx", "NoSuchOperator")
    with pytest.raises(
        EngineError, match=r"odd: TensorRT-RTX cannot read the graph: .*the_odd_node"
    ):
        build_plan(
            model, tmp_path / "odd.plan", backend="tensorrt-rtx", profiles=[{"n": Span(1, 1, 1)}]
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("operator", "attributes", "words"),
    [
        ("Det", {}, r"operator Det .*: not supported; no export of sdexport writes it"),
        (
            "Attention",
            {"softmax_precision": 1},
            r"operator Attention .*: .*softmax precision is not supported.*; --opset 18 exports it",
        ),
    ],
)
def test_build_failure_names_the_export_option(
    tmp_path: Path, operator: str, attributes: dict[str, Any], words: str
) -> None:
    inputs = ["x"] * (3 if operator == "Attention" else 1)
    node = helper.make_node(operator, inputs, ["y"], name="the_odd_node", **attributes)
    shape = ["n", 4, 8, 8]
    edges = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph([node], "g", edges[:1], edges[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(EngineError, match=rf"cannot read the graph: {words}"):
        build_plan(
            tmp_path / "model.onnx",
            tmp_path / "odd.plan",
            backend="tensorrt-rtx",
            profiles=[{"n": Span(1, 1, 1)}],
        )


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ("GroupNormalization", "--opset 18 exports it as several older operators"),
        ("DequantizeLinear", "--precision fp16 exports none"),
        ("Conv", "no export option avoids it"),
        ("Evil\n\x1b[31m", "no export of sdexport writes it"),
    ],
)
def test_rejected_nodes_are_explained_in_one_line(operator: str, words: str) -> None:
    errors = [NodeError(operator, name, "false") for name in ("first", "second", "")]
    text = explained(errors)
    assert words in text and "first" in text and "second" not in text and text.isprintable()
    many = [NodeError(f"Op{index}", "", "why\nnot") for index in range(40)]
    assert explained(many).endswith(f"; and {40 - MOST_NODES} more")
    assert "node without a name): why not" in explained(many) and explained([]) == ""


def test_build_failure_has_the_builders_message(package: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^text_encoder: TensorRT-RTX cannot build: [^\n]+$"):
        build(
            package,
            tmp_path / "text_encoder.plan",
            profiles=[{"batch": Span(1, 2, 4), "sequence": Span(1, 900, 1000)}],
        )


def test_build_rejects_damaged_graphs(package: Path, tmp_path: Path) -> None:
    content = (package / "text_encoder" / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(EngineError, match=r"model\.onnx"):
        build_plan(
            tmp_path / "model.onnx",
            tmp_path / "text_encoder.plan",
            backend="tensorrt-rtx",
            profiles=[PROFILE],
        )
    with pytest.raises(FileNotFoundError, match="no model file"):
        build_plan(tmp_path / "no.onnx", tmp_path / "a.plan", backend="tensorrt-rtx", profiles=[])


@pytest.mark.parametrize("option", ["refittable", "weight_stripped"])
def test_build_names_options_that_need_a_gpu(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(cuda_device, "absent", lambda: "no driver")
    with pytest.raises(
        EngineError, match=r"plan with TensorRT-RTX needs an NVIDIA GPU .*no driver"
    ):
        build(package, tmp_path / "a.plan", options=BuildOptions(**{option: True}))


def test_build_options_of_the_other_library(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no option hardware_compatible"):
        build(package, tmp_path / "a.plan", options=BuildOptions(hardware_compatible=True))
    for wrong in ({"optimization_level": 6}, {"workspace": 0}):
        with pytest.raises(ValueError, match="must be"):
            BuildOptions(**wrong)


def test_build_missing_library_names_the_pip_command(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend, lib in LIBRARIES.items():
        monkeypatch.setitem(sys.modules, lib.module, None)
        with pytest.raises(ImportError, match=rf"pip install 'sdexport\[{backend}\]'"):
            build(package, tmp_path / "a.plan", backend=backend)


def test_build_worker_that_dies(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho the last words >&2\nkill -9 $$\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(EngineError, match=r"died \(killed, perhaps for memory\): the last words"):
        build(package, tmp_path / "out" / "text_encoder.plan")
    assert list((tmp_path / "out").iterdir()) == []


def test_build_worker_reports_a_few_of_many_messages() -> None:
    many = [f"node {i}" for i in range(40)]
    summary = _summary([*many, "node 0"], ValueError("x"))
    assert summary == "; ".join([*many[:MAX_MESSAGES], f"and {40 - MAX_MESSAGES} more"])
    assert _summary([], ValueError("the\nreason")) == "the reason"


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from sdexport.cli import main
main(sys.argv[1:])
"""


def test_build_command_on_a_full_disk_leaves_no_files(package: Path, tmp_path: Path) -> None:
    """No file may grow beyond 1 MB, which ends a write as a full disk does."""
    arguments = ["build", package, "--backend", "tensorrt-rtx", "--component", "text_encoder", "-q"]
    command = [sys.executable, "-c", FULL, *arguments, "--engine-dir", tmp_path / "engines"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: text_encoder: TensorRT-RTX cannot build: ")
    assert "File too large" in done.stderr
    assert list((tmp_path / "engines" / "tensorrt-rtx").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_build_on_a_full_disk(package: Path, tmp_path: Path) -> None:
    odd_model(tmp_path / "model.onnx", "Relu")
    job = {
        "module": "tensorrt_rtx",
        "onnx": str(tmp_path / "model.onnx"),
        "plan": "/dev/full",
        "profiles": [{"x": [[1], [1], [1]]}],
        "options": BuildOptions().key(),
        "timing_cache": None,
    }
    result = run_in_worker("sdexport.engines.trt.build_worker", "build", {"job": job})
    assert result["failed"] == "file" and "No space left" in result["message"]


def test_build_into_a_folder_that_cannot_be_written(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = os.open
    for number in (errno.EACCES, errno.EROFS):

        def fail(path: Any, flags: int, *rest: Any, number: int = number, **more: Any) -> int:
            if flags & os.O_CREAT:
                raise OSError(number, os.strerror(number), str(path))
            return really_open(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", fail)
        with pytest.raises(EngineError, match=r"; --engine-dir puts engines elsewhere$"):
            build(package, tmp_path / "text_encoder.plan")


def test_build_rejects_a_timing_cache(package: Path, tmp_path: Path) -> None:
    """TensorRT-RTX's documentation: it has no effect, and makes a build need a GPU."""
    with pytest.raises(InvalidArgumentError, match=r"a: .*--timing-cache\) has no effect"):
        build(package, tmp_path / "a.plan", timing_cache=tmp_path / "timing.cache")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("capabilities", "words"),
    [
        (("9.0",), r"cannot build for compute capability '9\.0'; it knows 8\.0, 8\.6, 8\.9, 12\.0"),
        (("8.9", "9.9"), r"cannot build for compute capability '9\.9'"),
        (("7.5",), r"7\.5 \(Turing\) takes only some graphs .*--backend onnxruntime-cuda"),
        (("8.6", "7.5"), r"7\.5 \(Turing\)"),
        (("",), "cannot build for compute capability ''"),
        (("8.9\n",), r"cannot build for compute capability '8\.9\\n'"),
        (("sm_89",), "cannot build for compute capability 'sm_89'"),
        (("NONE",), "cannot build for compute capability 'NONE'"),
        (("8.9", "8.9"), r"given twice: 8\.9, 8\.9"),
    ],
)
def test_build_rejects_compute_capabilities(
    package: Path, tmp_path: Path, capabilities: tuple[str, ...], words: str
) -> None:
    options = BuildOptions(compute_capabilities=capabilities)
    with pytest.raises(InvalidArgumentError, match=words):
        build(package, tmp_path / "a.plan", options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("capability", "options", "words"),
    [
        ("9.0", {}, r"does not run on NVIDIA H200 \(compute capability 9\.0\)"),
        ("8.6", {"compute_capabilities": ("8.9",)}, r"capability 8\.9, here is 8\.6"),
        ("8.9", {}, ""),
    ],
)
def test_build_warns_if_this_machine_cannot_run_the_engine(
    package: Path,
    plan: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: str,
    options: dict[str, Any],
    words: str,
) -> None:
    here = cuda_device.Gpu("NVIDIA H200", capability, 2**37)
    monkeypatch.setattr(cuda_device, "gpu", lambda: here)
    if options:
        changes = {"target": {"compute_capabilities": "8.9"}, "options": BuildOptions(**options)}
        sidecar = replace(
            Sidecar.read(plan), target=changes["target"], options=changes["options"].key()
        )
        sidecar_path(plan).write_text(sidecar.to_json())
    build(package, plan, options=BuildOptions(**options))
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == bool(words)
    assert not words or re.search(
        rf"^text_encoder: this machine cannot run it: .*{words}", warnings[0]
    )


def test_real_library_explains_what_it_rejects() -> None:
    """Its runtime starts without a GPU, and its own words are in the error."""
    module = LIBRARIES["tensorrt-rtx"].load()
    calls = LibraryCalls(module, "TensorRT-RTX", "unet")
    runtime = calls.value("does not start", module.Runtime, calls.logger)
    with pytest.raises(EngineError, match=r"^unet: TensorRT-RTX cannot load it: .*magicTag"):
        calls.value("cannot load it", runtime.deserialize_cuda_engine, b"no plan" * 100)
    with pytest.raises(EngineError, match=r"does not refit: .*incompatible constructor arguments"):
        calls.value("does not refit", module.Refitter, None, calls.logger)


def test_portable_is_what_the_library_targets_by_default(package: Path, built: Any) -> None:
    """The header of a plan has a bit for each compute capability, and one more; see the docs."""
    header = built[0].plan.read_bytes()[:HEADER]
    lib = LIBRARIES["tensorrt-rtx"]
    bits = [name for name in lib.load().ComputeCapability.__members__ if name.startswith("SM")]
    targets = header[TARGETS]
    listed_here = [f"{n[2:-1]}.{n[-1]}" for i, n in enumerate(bits) if targets >> i & 1]
    assert tuple(listed_here) == listed(lib)
