"""TensorRT sessions on a fake library and a fake GPU, which record their calls."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import load_pipeline
from sdexport.engines import EngineError, Session, cuda_device, open_session
from sdexport.engines.cache.profiles import Span
from sdexport.engines.cache.sidecar import (
    StoredFile,
    model_digest,
    sidecar_path,
    with_own_digest,
)
from sdexport.engines.errors import InvalidArgumentError, MissingDependencyError, OutOfMemoryError
from sdexport.engines.trt import library_calls
from sdexport.engines.trt.library import library
from sdexport.engines.trt.library_calls import LibraryCalls
from sdexport.engines.trt.scratch_memory import shared_activations
from sdexport.engines.trt.weight_streaming import RESERVE
from tests.helpers.altered_models import with_other_weights
from tests.helpers.changed_package import accept_files
from tests.helpers.fake_tensorrt import (
    PROFILE,
    Failure,
    FakeCuda,
    Status,
    current_world,
    install,
    write_plan,
)
from tests.helpers.unet_sessions import feeds
from tests.tolerances import FAKE_ENGINE_ABS, FAKE_ENGINE_DIFFERENCE_ABS, FAKE_ENGINE_REL

RTX, TRT = "tensorrt-rtx", "tensorrt"


@pytest.fixture
def log() -> list[Any]:
    return []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, log: list[Any]) -> Iterator[FakeCuda]:
    yield install(monkeypatch, log)
    gc.collect()
    assert current_world().faults == []


@pytest.fixture
def model(package: Path) -> Path:
    return package / "unet" / "model.onnx"


@pytest.fixture
def session(gpu: FakeCuda, model: Path, tmp_path: Path) -> Iterator[Session]:
    with opened(model, tmp_path) as opened_session:
        yield opened_session


def accept_plan(plan: Path) -> None:
    """Write the sidecar anew, for the plan as it is."""
    path = sidecar_path(plan)
    values = json.loads(path.read_text())
    values["files"] = {plan.name: asdict(StoredFile.of(plan))}
    del values["sidecar_sha256"]
    path.write_text(with_own_digest(values))


def opened(model: Path, folder: Path, backend: str = TRT, **changes: Any) -> Session:
    plan = write_plan(model, folder / "unet.plan", backend, **changes)
    return open_session(model, backend, plan=plan)


def test_loop_allocates_nothing_and_replays_a_graph(session: Session, gpu: FakeCuda) -> None:
    inputs = feeds()
    first = session.run(inputs)["out_sample"]
    np.testing.assert_array_equal(session.run(inputs)["out_sample"], first)
    before = gpu.counts.copy()
    for t in range(5):
        inputs["timestep"] = np.full(1, t, np.float32)
        expected = inputs["sample"] * (1 + np.float32(t) / 1000)
        expected += inputs["encoder_hidden_states"].mean()
        np.testing.assert_allclose(
            session.run(inputs)["out_sample"], expected, rtol=FAKE_ENGINE_REL, atol=FAKE_ENGINE_ABS
        )
    calls = gpu.counts - before
    assert calls["cudaGraphLaunch"] == 5 and calls["cudaStreamSynchronize"] == 5
    assert not {"cudaMalloc", "cudaMallocHost", "cudaGraphInstantiate"} & set(calls)


def test_bind_uploads_its_constants_once(session: Session, gpu: FakeCuda) -> None:
    inputs = feeds(batch=2)
    session.run(inputs)
    session.run(inputs)
    gpu.bytes.clear()
    session.run(inputs)
    uploaded = gpu.bytes["h2d"]
    embeds = inputs.pop("encoder_hidden_states")
    assert uploaded == embeds.nbytes + inputs["sample"].nbytes + 4
    with session.bind(encoder_hidden_states=embeds) as bound:
        gpu.bytes.clear()
        for _ in range(10):
            bound.run(inputs)
        assert gpu.bytes["h2d"] == 10 * (inputs["sample"].nbytes + 4)
        assert gpu.bytes["d2d"] == embeds.nbytes


def test_pipeline_uploads_latents_and_timesteps_only(
    gpu: FakeCuda, package: Path, tmp_path: Path
) -> None:
    """What a step copies to the device: embeddings are copied once per image."""
    folder = tmp_path / TRT
    folder.mkdir()
    write_plan(package / "unet" / "model.onnx", folder / "unet.plan", TRT)
    sent = []
    with load_pipeline(package, {"unet": TRT}, verify=False, engine_dir=tmp_path) as pipe:
        embeds = pipe.encode(["a red circle"], [""])
        sampler = pipe.scheduler("ddim", 4)
        latents = np.ones((1, *pipe.latent_shape(128, 128)), np.float32)
        before = gpu.bytes["h2d"]
        for _ in pipe.denoise(latents, embeds, sampler):
            sent.append(gpu.bytes["h2d"] - before)
            before = gpu.bytes["h2d"]
    both = 2 * latents.nbytes + 4
    assert sent == [embeds.nbytes + both, both, both, both]
    assert both < (embeds.nbytes + both) / 2


def test_bound_sessions_take_turns(session: Session) -> None:
    inputs = feeds()
    embeds = inputs.pop("encoder_hidden_states")
    with (
        session.bind(encoder_hidden_states=embeds) as one,
        session.bind(encoder_hidden_states=embeds + 1) as other,
    ):
        for _ in range(3):
            low, high = one.run(inputs)["out_sample"], other.run(inputs)["out_sample"]
            np.testing.assert_allclose(high - low, 1, rtol=0, atol=FAKE_ENGINE_DIFFERENCE_ABS)
        unbound = session.run(inputs | {"encoder_hidden_states": embeds + 2})["out_sample"]
        np.testing.assert_allclose(
            unbound - one.run(inputs)["out_sample"], 2, rtol=0, atol=FAKE_ENGINE_DIFFERENCE_ABS
        )


def test_close_frees_everything(gpu: FakeCuda, model: Path, tmp_path: Path) -> None:
    session = opened(model, tmp_path)
    bound = session.bind(encoder_hidden_states=feeds()["encoder_hidden_states"])
    for side in range(4, 24):  # more shapes than are kept
        session.run(feeds(height=side))
    bound.close()
    bound.close()
    session.close()
    session.close()
    gc.collect()
    assert gpu.memory == {} and gpu.open == set()


def test_bound_session_closes_after_its_owner(gpu: FakeCuda, model: Path, tmp_path: Path) -> None:
    session = opened(model, tmp_path)
    bound = session.bind(encoder_hidden_states=feeds()["encoder_hidden_states"])
    session.close()
    bound.close()
    assert gpu.memory == {}


def test_scratch_memory_is_shared_and_graphs_follow_it(
    gpu: FakeCuda, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    with opened(model, tmp_path) as one, opened(model, tmp_path / "b") as other:
        small = feeds(height=8)
        for _ in range(3):
            expected = one.run(small)["out_sample"]
        instantiated = gpu.counts["cudaGraphInstantiate"]
        other.run(feeds(batch=4, height=32))  # moves the block
        assert shared_activations(0).size == 1000 * 4 * 4 * 32 * 16
        for _ in range(3):
            np.testing.assert_array_equal(one.run(small)["out_sample"], expected)
        assert gpu.counts["cudaGraphInstantiate"] == instantiated + 1
    assert shared_activations(0).size == 0


def test_narrowest_profile_is_used(gpu: FakeCuda, model: Path, tmp_path: Path) -> None:
    static = {name: Span(span.opt, span.opt, span.opt) for name, span in PROFILE.items()}
    with opened(model, tmp_path, profiles=(PROFILE, static)) as session:
        session.run(feeds(batch=2))
        session.run(feeds(batch=1))
        profiles = [shape._context.own._profile for shape in session._shapes.values()]  # type: ignore[attr-defined]
    assert profiles == [1, 0]


def test_shape_outside_every_profile_lists_them(session: Session) -> None:
    with pytest.raises(ValueError, match=r"unet: .* not built for batch 9.*batch 1:2:8, height 1:"):
        session.run(feeds(batch=9))


def test_rtx_uses_its_own_graphs_and_keeps_its_cache(
    gpu: FakeCuda, model: Path, tmp_path: Path, log: list[Any]
) -> None:
    for _ in range(2):
        with opened(model, tmp_path, RTX) as session:
            for _ in range(3):
                session.run(feeds())
        assert (tmp_path / "unet.cache").read_bytes().endswith(b"\nkernels")
    assert log.count(("deserialize", b"kernels")) == 1  # by the second session
    assert gpu.counts["cudaGraphLaunch"] == 0
    contexts = [how for what, how in log if what == "context"]
    assert contexts[0].cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert contexts[0].dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert [how.name for what, how in log if what == "strategy"] == ["USER_MANAGED"] * 2


@pytest.mark.parametrize("damage", ["old", "flipped", "other plan", "folder"])
def test_rtx_cache_that_does_not_fit_is_replaced(
    gpu: FakeCuda, model: Path, tmp_path: Path, log: list[Any], damage: str
) -> None:
    cache = tmp_path / "unet.cache"
    with opened(model, tmp_path, RTX) as session:
        session.run(feeds())
    kept = cache.read_bytes()
    cache.unlink()
    if damage == "folder":
        cache.mkdir()
    else:
        cache.write_bytes({"old": b"kernels", "flipped": kept[:-1] + b"S"}.get(damage, kept))
    plan = write_plan(model, tmp_path / "unet.plan", RTX)
    if damage == "other plan":
        plan.write_bytes(b"plan, newer")
        accept_plan(plan)
    with open_session(model, RTX, plan=plan) as session:
        session.run(feeds())
    assert ("deserialize", b"kernels") not in log
    if damage != "folder":
        assert cache.read_bytes().endswith(b"\nkernels")
    assert (damage == "other plan") == (damage != "folder" and cache.read_bytes() != kept)


def test_rtx_cache_of_a_pipe_is_not_read(
    gpu: FakeCuda, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no pipes with a name")
    os.mkfifo(tmp_path / "unet.cache")
    with opened(model, tmp_path, RTX):
        assert "unet.cache is not a regular file" in caplog.text


def test_stripped_plan_loads_its_weights_from_the_onnx_file(
    gpu: FakeCuda, model: Path, tmp_path: Path, log: list[Any]
) -> None:
    opened(model, tmp_path, options={"weight_stripped": True}).close()
    assert ("refit", "model.onnx") in log


@pytest.fixture
def other(model: Path, tmp_path: Path) -> Path:
    """The same graph with other weights."""
    path = tmp_path / "other" / "merged.onnx"
    path.parent.mkdir()
    return with_other_weights(model, path)


def test_refittable_plan_loads_the_weights_of_another_file(
    gpu: FakeCuda, model: Path, other: Path, tmp_path: Path, log: list[Any]
) -> None:
    plan = write_plan(model, tmp_path / "unet.plan", TRT, options={"refittable": True})
    open_session(model, TRT, plan=plan, digest=model_digest(model)).close()
    assert not [what for what in log if what[0] == "refit"]
    open_session(other, TRT, plan=plan, digest=model_digest(other)).close()
    assert ("refit", "merged.onnx") in log


def test_plan_that_is_not_refittable_names_the_option(
    gpu: FakeCuda, model: Path, other: Path, tmp_path: Path
) -> None:
    plan = write_plan(model, tmp_path / "unet.plan", TRT)
    with pytest.raises(EngineError, match="of the same graph: --refittable would take its weights"):
        open_session(other, TRT, plan=plan, digest=model_digest(other))


def test_refit_of_an_open_session(
    gpu: FakeCuda, model: Path, other: Path, tmp_path: Path, log: list[Any]
) -> None:
    session: Any = opened(model, tmp_path, options={"refittable": True})
    inputs = feeds()
    rest = {name: value for name, value in inputs.items() if name != "encoder_hidden_states"}
    with session, session.bind(encoder_hidden_states=inputs["encoder_hidden_states"]) as bound:
        for _ in range(3):
            expected = bound.run(rest)["out_sample"]
        instantiated = gpu.counts["cudaGraphInstantiate"]
        session.refit(other)
        assert log[-1] == ("refit", "merged.onnx") and session.refits == 1
        for _ in range(3):  # the bound inputs are still there, the graph is captured anew
            np.testing.assert_array_equal(bound.run(rest)["out_sample"], expected)
        assert gpu.counts["cudaGraphInstantiate"] == instantiated + 1
        with pytest.raises(EngineError, match="is another graph; its weights do not fit"):
            session.refit(model.parents[1] / "vae_decoder" / "model.onnx")


def test_pipeline_uses_the_engines_of_another_package(
    gpu: FakeCuda, package: Path, package_copy: Path, tmp_path: Path, log: list[Any]
) -> None:
    """Two packages of one graph: --engine-dir names the engines of the other."""
    path = package_copy / "unet" / "model.onnx"
    with_other_weights(path, path)
    accept_files(package_copy)
    folder = tmp_path / "engines" / TRT
    folder.mkdir(parents=True)
    options = {"refittable": True}
    write_plan(package / "unet" / "model.onnx", folder / "unet.plan", TRT, options=options)
    for source, refits in ((package, 0), (package_copy, 1)):
        log.clear()
        with load_pipeline(source, {"unet": TRT}, engine_dir=tmp_path / "engines") as pipe:
            pipe.session("unet")
        assert len([what for what in log if what[0] == "refit"]) == refits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"library_version": "1.0"}, r"built with TensorRT 1\.0, here is 99\.9\.9"),
        ({"backend": RTX}, "it was built for tensorrt-rtx"),
        (
            {"target": {"gpu": "Other", "compute_capability": "8.0"}},
            r"built on Other \(8\.0\), here is Fake GPU \(8\.9\)",
        ),
        ({"target": {"compute_capabilities": "12.0"}}, r"compute capability 12\.0, here is 8\.9"),
        (
            {"files": {"unet.plan": StoredFile(5, "0" * 64)}},
            "truncated or altered: 4 bytes, not 5",
        ),
        (
            {"files": {"unet.plan": StoredFile(4, "0" * 64)}},
            r"unet\.plan was damaged or altered: its SHA-256 is not the one in unet\.json",
        ),
    ],
)
def test_plan_that_does_not_fit_names_the_build_command(
    gpu: FakeCuda, model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        plan = write_plan(model, tmp_path / "unet.plan", changes.pop("backend", TRT), **changes)
        open_session(model, TRT, plan=plan)
    command = "sdexport build PACKAGE --backend tensorrt --component unet --rebuild-stale"
    assert str(caught.value).endswith(command)


def test_plan_of_another_onnx_file(gpu: FakeCuda, model: Path, tmp_path: Path) -> None:
    plan = write_plan(model, tmp_path / "unet.plan", TRT)
    with pytest.raises(EngineError, match="it was built from another ONNX file"):
        open_session(model, TRT, plan=plan, digest="0" * 64)


def test_plan_missing_or_rejected(gpu: FakeCuda, model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no engine .*build it: sdexport build PACKAGE"):
        open_session(model, TRT, plan=tmp_path / "unet.plan")
    plan = write_plan(model, tmp_path / "unet.plan", TRT)
    plan.write_bytes(b"junk")
    with pytest.raises(EngineError, match=r"unet\.plan was damaged or altered.*--rebuild-stale$"):
        open_session(model, TRT, plan=plan)
    accept_plan(plan)
    with pytest.raises(EngineError, match=r"TensorRT cannot load .*: magic tag is wrong$"):
        open_session(model, TRT, plan=plan)
    sidecar_path(plan).write_text("junk")
    with pytest.raises(EngineError, match=r"unet\.json is damaged.*--rebuild-stale"):
        open_session(model, TRT, plan=plan)


NULL = TypeError("pybind11::init(): factory function returned nullptr")
RAISED = RuntimeError("thrown\nwords")
OPENING = {
    "Runtime": [NULL],
    "Runtime.deserialize_cuda_engine": [None, RAISED],
    "ICudaEngine.get_tensor_name": [None, RAISED],
    "ICudaEngine.get_tensor_dtype": [None, RAISED],
}
OPENING_RTX = {
    "ICudaEngine.create_runtime_config": [None, RAISED],
    "IRuntimeConfig.set_execution_context_allocation_strategy": [RAISED],
    "IRuntimeConfig.cuda_graph_strategy": [RAISED],
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": [RAISED],
}
REFITTING = {
    "Refitter": [NULL],
    "OnnxParserRefitter": [NULL],
    "OnnxParserRefitter.refit_from_file": [False, RAISED],
    "Refitter.refit_cuda_engine": [False, RAISED],
}
RUNNING = {
    "ICudaEngine.create_execution_context": [None, RAISED],
    "ICudaEngine.get_device_memory_size_for_profile_v2": [RAISED],
    "IExecutionContext.set_optimization_profile_async": [False, RAISED],
    "IExecutionContext.set_input_shape": [False, RAISED],
    "IExecutionContext.infer_shapes": [None, ["sample"], RAISED],
    "IExecutionContext.update_device_memory_size_for_shapes": [0, -1, RAISED],
    "IExecutionContext.set_device_memory": [RAISED],
    "IExecutionContext.get_tensor_shape": [None, (2, -1, 8, 8), RAISED],
    "IExecutionContext.set_tensor_address": [False, RAISED],
    "IExecutionContext.execute_async_v3": [False, RAISED],
}


def cases(calls: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(c, how, id=f"{c}-{how}") for c, ways in calls.items() for how in ways]


def fails(call: str, how: Any, work: Callable[[], object]) -> None:
    """Make a call fail, with and without a message in the library's log."""
    error = how if isinstance(how, Exception) else None
    own = "it gave|it also needs|out_sample" if error is None else "pybind11|thrown words"
    for logged, reason in (("its own words", "its own words"), ("", own)):
        current_world().fails[call] = Failure(how, error, logged)
        with pytest.raises(EngineError, match=rf"^unet: TensorRT(-RTX)? [^:].*: .*({reason})"):
            work()
    current_world().fails.clear()


@pytest.mark.parametrize(("call", "how"), cases(OPENING | REFITTING))
@pytest.mark.parametrize("backend", [TRT, RTX])
def test_library_call_that_fails_while_opening(
    gpu: FakeCuda, model: Path, tmp_path: Path, backend: str, call: str, how: Any
) -> None:
    plan = write_plan(model, tmp_path / "unet.plan", backend, options={"weight_stripped": True})
    fails(call, how, lambda: open_session(model, backend, plan=plan))
    open_session(model, backend, plan=plan).close()
    gc.collect()
    assert gpu.memory == {} and gpu.open == set()


@pytest.mark.parametrize(("call", "how"), cases(OPENING_RTX))
def test_library_call_of_rtx_that_fails_while_opening(
    gpu: FakeCuda, model: Path, tmp_path: Path, call: str, how: Any
) -> None:
    plan = write_plan(model, tmp_path / "unet.plan", RTX)
    fails(call, how, lambda: open_session(model, RTX, plan=plan))
    open_session(model, RTX, plan=plan).close()


@pytest.mark.parametrize(("call", "how"), cases(RUNNING))
@pytest.mark.parametrize("backend", [TRT, RTX])
def test_library_call_that_fails_while_running(
    gpu: FakeCuda, model: Path, tmp_path: Path, backend: str, call: str, how: Any
) -> None:
    two_profiles = (PROFILE, {**PROFILE, "batch": Span(1, 1, 1)})
    with opened(model, tmp_path, backend, profiles=two_profiles) as session:
        fails(call, how, lambda: session.run(feeds()))
        assert np.isfinite(session.run(feeds())["out_sample"]).all()
        kept = len(gpu.memory)
        fails(call, how, lambda: session.run(feeds(height=8, batch=2)))
        if call != "IExecutionContext.execute_async_v3":  # its buffers are for the next call
            assert len(gpu.memory) <= kept
    gc.collect()
    assert gpu.memory == {} and gpu.open == set()


def test_library_that_runs_out_of_memory(gpu: FakeCuda, model: Path, tmp_path: Path) -> None:
    with opened(model, tmp_path) as session:
        words = "Requested amount of GPU memory could not be allocated."
        current_world().fails["ICudaEngine.create_execution_context"] = Failure(logged=words)
        with pytest.raises(OutOfMemoryError, match="a smaller size"):
            session.run(feeds())


def test_scratch_memory_of_an_engine_that_needs_none(session: Session, gpu: FakeCuda) -> None:
    current_world().scratch = 0
    size = "IExecutionContext.update_device_memory_size_for_shapes"
    current_world().fails[size] = Failure(0)
    assert np.isfinite(session.run(feeds())["out_sample"]).all()
    current_world().fails[size] = Failure(0, logged="no profile is set")
    with pytest.raises(EngineError, match="gives no size of its scratch memory: no profile is set"):
        session.run(feeds(height=8))


@pytest.mark.parametrize(
    ("call", "how"),
    cases(
        {
            "IRuntimeConfig.create_runtime_cache": [None, RAISED],
            "IRuntimeConfig.set_runtime_cache": [False, RAISED],
        }
    ),
)
def test_rtx_without_its_cache_runs_and_says_why(
    gpu: FakeCuda,
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    call: str,
    how: Any,
) -> None:
    error = how if isinstance(how, Exception) else None
    current_world().fails[call] = Failure(how, error, "another version")
    with opened(model, tmp_path, RTX) as session:
        assert np.isfinite(session.run(feeds())["out_sample"]).all()
    assert "does not use the cache of compiled kernels: another version" in caplog.text
    assert not (tmp_path / "unet.cache").exists()


@pytest.mark.parametrize("how", [None, RAISED])
def test_rtx_cache_that_cannot_be_written_out(
    gpu: FakeCuda, model: Path, tmp_path: Path, how: Any
) -> None:
    error = how if isinstance(how, Exception) else None
    with opened(model, tmp_path, RTX) as session:
        session.run(feeds())
        current_world().fails["IRuntimeCache.serialize"] = Failure(how, error)
    assert not (tmp_path / "unet.cache").exists()
    assert gpu.memory == {}


GIGABYTE = 10**9


@pytest.mark.parametrize(
    ("weights", "free", "budget"),
    [
        (5 * GIGABYTE, 20 * GIGABYTE, 5 * GIGABYTE),  # all of them: nothing is streamed
        (12 * GIGABYTE, 8 * GIGABYTE, 8 * GIGABYTE - 2**30 - RESERVE),
        (5 * GIGABYTE, 2**30, 0),
    ],
)
def test_weights_are_streamed_as_far_as_the_memory_does_not_suffice(
    gpu: FakeCuda, model: Path, tmp_path: Path, weights: int, free: int, budget: int
) -> None:
    """5 GB in the library's 32-bit proposal would be 705 MB."""
    gpu.free, current_world().weights = free, weights
    with opened(model, tmp_path, options={"weight_streaming": True}) as session:
        assert session._engine.weight_streaming_budget_v2 == budget  # type: ignore[attr-defined]


def test_weights_whose_budget_is_rejected(gpu: FakeCuda, model: Path, tmp_path: Path) -> None:
    call = "ICudaEngine.weight_streaming_budget_v2"
    current_world().weights = GIGABYTE
    current_world().fails[call] = Failure(logged="a context exists")
    with pytest.raises(
        EngineError, match=r"rejects a budget of 1000000000 bytes .*: a context exists"
    ):
        opened(model, tmp_path, options={"weight_streaming": True})


@pytest.mark.parametrize(("backend", "version"), [(TRT, "10.8.0.43"), (RTX, "1.5.0.114")])
def test_library_that_is_too_old(
    gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch, backend: str, version: str
) -> None:
    monkeypatch.setattr(library(backend).load(), "__version__", version)
    with pytest.raises(
        MissingDependencyError, match=rf"{version} is installed, .* or later .*--up"
    ):
        library(backend).load()


def test_logger_never_raises(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library calls it from destructors, where an exception ends the process."""
    calls = LibraryCalls(library(RTX).load(), "TensorRT-RTX", "unet")
    severity = calls.logger.Severity

    def fail(*arguments: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(library_calls, "one_line", fail)
    for level in (severity.ERROR, severity.WARNING, severity.INFO, None, 7):
        calls.logger.log(level, "words")


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (11, 0), (8, 7), (7, 5), (13, 0)])
def test_portable_plan_on_a_gpu_that_the_library_does_not_know(
    gpu: FakeCuda, model: Path, tmp_path: Path, capability: tuple[int, int]
) -> None:
    gpu.compute_capability, gpu.name = capability, b"NVIDIA H200"
    shown = ".".join(map(str, capability))
    words = rf"does not run on NVIDIA H200 \(compute capability {shown}\), only on 8\.0, 8\.6, 8\.9"
    with pytest.raises(EngineError, match=words + ".*; use --backend onnxruntime-cuda$"):
        opened(model, tmp_path, RTX)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
def test_portable_plan_on_a_gpu_that_the_library_knows(
    gpu: FakeCuda, model: Path, tmp_path: Path, capability: tuple[int, int]
) -> None:
    gpu.compute_capability = capability
    opened(model, tmp_path, RTX).close()


@pytest.mark.parametrize("device", [-1, True, "0", 1.0, None])
def test_device_that_is_no_number_of_a_gpu(
    gpu: FakeCuda, model: Path, tmp_path: Path, device: Any
) -> None:
    plan = write_plan(model, tmp_path / "unet.plan", TRT)
    with pytest.raises(InvalidArgumentError, match="device must be the number of a GPU, got"):
        open_session(model, TRT, plan=plan, device=device)


def test_session_on_the_second_gpu(gpu: FakeCuda, model: Path, tmp_path: Path) -> None:
    gpu.devices = 2
    plan = write_plan(model, tmp_path / "unet.plan", TRT)
    with open_session(model, TRT, plan=plan, device=1) as session:
        session.run(feeds())
        assert {device for _, device in gpu.kinds.values()} == {1}


def test_every_cuda_call_is_checked(session: Session, gpu: FakeCuda) -> None:
    session.run(feeds())
    gpu.fails = {"cudaStreamSynchronize": Status.cudaErrorNoDevice}
    with pytest.raises(EngineError, match=r"cudaStreamSynchronize: words .*\(cudaErrorNoDevice\)"):
        session.run(feeds())
    gpu.fails = {"cudaMemcpyAsync": Status.cudaErrorNoDevice}
    with pytest.raises(EngineError, match="cudaMemcpyAsync"):
        session.run(feeds())
    gpu.fails = {}
    assert np.isfinite(session.run(feeds())["out_sample"]).all()


def test_out_of_memory_frees_everything(session: Session, gpu: FakeCuda) -> None:
    session.run(feeds())
    allocated = len(gpu.memory)
    gpu.fails = {"cudaMallocHost": Status.cudaErrorMemoryAllocation}
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation"):
        session.run(feeds(height=8))
    assert len(gpu.memory) == allocated
    gpu.fails = {}
    session.run(feeds(height=8))


def test_failed_capture_runs_without_a_graph(session: Session, gpu: FakeCuda) -> None:
    gpu.fails = {"cudaStreamEndCapture": Status.cudaErrorStreamCaptureUnsupported}
    expected = session.run(feeds())["out_sample"]
    session.run(feeds())
    gpu.fails = {}
    for _ in range(3):
        np.testing.assert_array_equal(session.run(feeds())["out_sample"], expected)
    assert gpu.counts["cudaGraphLaunch"] == 0


def test_engine_that_does_not_start(session: Session, gpu: FakeCuda) -> None:
    current_world().fails["IExecutionContext.execute_async_v3"] = Failure(False)
    with pytest.raises(EngineError, match="does not start the engine: it gave no reason"):
        session.run(feeds())


def test_gpu_absent_or_driver_too_old(gpu: FakeCuda, model: Path, tmp_path: Path) -> None:
    plan = write_plan(model, tmp_path / "unet.plan", TRT)
    gpu.fails = {"cudaGetDeviceCount": Status.cudaErrorNoDevice}
    with pytest.raises(
        EngineError, match=r"unet: no NVIDIA GPU .* driver is for CUDA 12\.4, CUDA 13"
    ):
        open_session(model, TRT, plan=plan)
    gpu.fails = {}
    with pytest.raises(EngineError, match="there is no GPU 3; this machine has 1"):
        open_session(model, TRT, plan=plan, device=3)


def test_cuda_without_bindings_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    cuda_device.runtime.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'cuda-bindings>=12\.9'"):
        cuda_device.runtime()
    assert "cuda-bindings" in cuda_device.absent()
