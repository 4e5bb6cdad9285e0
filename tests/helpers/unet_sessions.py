"""The demo model's UNet as a session of every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport.builds.prepare_onnxruntime import prepare_graph
from sdexport.engines import PLAN_BACKENDS, Session, cuda_device, open_session
from sdexport.engines.cache.profiles import Profile, Span
from sdexport.engines.trt.engine_build import build_plan
from sdexport.engines.trt.library import library
from sdexport.engines.trt.supported_gpus import gpu_problem
from tests.helpers.fake_tensorrt import install, write_plan
from tests.helpers.small_unet import write_small_unet

OPENERS = [
    "onnxruntime",
    "onnxruntime-prepared",
    "openvino",
    "webgpu",
    "torch",
    "fake-tensorrt",
    "fake-tensorrt-rtx",
    pytest.param("onnxruntime-cuda", marks=pytest.mark.gpu),
    pytest.param("tensorrt", marks=pytest.mark.gpu),
    pytest.param("tensorrt-rtx", marks=pytest.mark.gpu),
]
MODULES = {"tensorrt-rtx": "tensorrt_rtx"}
PROFILE: Profile = {
    "batch": Span(1, 2, 4),
    "height": Span(4, 16, 40),
    "width": Span(4, 16, 40),
    "sequence": Span(77, 77, 77),
}


def feeds(batch: int = 1, height: int = 16, width: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch * 100 + height)
    return {
        "sample": rng.standard_normal((batch, 4, height, width), dtype=np.float32),
        "timestep": np.full(1, 500.5, np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, 77, 96), dtype=np.float32),
    }


def open_unet(request: pytest.FixtureRequest, opener: str) -> Session:
    """The demo UNet as a session; skips the test if the backend is not installed.

    A GPU in software is slow: WebGPU gets a small graph in its place.
    """
    if opener == "torch":
        return _torch(request)
    if opener == "webgpu":
        request.getfixturevalue("software_gpu")
        small = request.getfixturevalue("tmp_path") / "unet" / "model.onnx"
        return open_session(write_small_unet(small), opener)
    package: Path = request.getfixturevalue("package")
    model = package / "unet" / "model.onnx"
    if opener == "onnxruntime-cuda":
        return open_session(model, opener)
    if opener == "onnxruntime-prepared":
        plan = request.getfixturevalue("tmp_path_factory").getbasetemp() / "prepared" / "unet.onnx"
        prepare_graph(model, plan, component="unet")
        return open_session(model, "onnxruntime", plan=plan)
    if opener.startswith("fake-"):
        install(request.getfixturevalue("monkeypatch"))
        backend = opener.removeprefix("fake-")
        plan = write_plan(model, request.getfixturevalue("tmp_path") / "unet.plan", backend)
        return open_session(model, backend, plan=plan)
    pytest.importorskip(MODULES.get(opener, opener))
    if opener in PLAN_BACKENDS:
        if problem := gpu_problem(library(opener), cuda_device.gpu()):
            pytest.skip(problem)
        return open_session(model, opener, plan=_built(request, model, opener))
    return open_session(model, opener)


def _built(request: pytest.FixtureRequest, model: Path, backend: str) -> Path:
    """A real TensorRT plan, built once for each worker."""
    plan: Path = request.getfixturevalue("tmp_path_factory").getbasetemp() / backend / "unet.plan"
    build_plan(model, plan, backend=backend, profiles=[PROFILE])
    return plan


def _torch(request: pytest.FixtureRequest) -> Session:
    pytest.importorskip("torch")
    from sdexport.checkpoints.diffusers_folder import Checkpoint
    from sdexport.demo_model import MODEL_DIR
    from sdexport.graphs.wrappers import parts
    from sdexport.verification.reference import TorchSession

    configs = Checkpoint.open(MODEL_DIR).configs
    unet = parts(configs)[1]
    modules: dict[str, Any] = request.getfixturevalue("modules")
    return TorchSession(unet, modules["unet"])
