"""CUDA, ONNX Runtime and TensorRT on the GPU that is there; the contract tests run there too.

Not run yet (no hardware).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_checks import check_cuda
from sdexport import Package, Pipeline
from sdexport.builds.engine_builder import EngineSizes, build, profiles
from sdexport.engines import EngineError, cuda_device, open_session
from sdexport.engines.cache.profiles import Span
from sdexport.engines.trt.build_options import BuildOptions
from sdexport.engines.trt.engine_build import build_plan
from sdexport.engines.trt.library import library
from sdexport.engines.trt.supported_gpus import gpu_problem
from sdexport.runtime.component_engines import engine_path, open_component
from tests.helpers.altered_models import with_other_weights
from tests.tolerances import GPU_COMPONENT_REL, GPU_LATENTS_REL, assert_close

pytestmark = pytest.mark.gpu
SIZES = EngineSizes(Span(1, 1, 2), Span(64, 128, 192), Span(64, 128, 192))
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def skip_unless_supported(backend: str) -> None:
    """Skip a test of a library that is not installed, or does not run on this GPU."""
    pytest.importorskip(MODULES[backend])
    if problem := gpu_problem(library(backend), cuda_device.gpu()):
        pytest.skip(problem)


def test_cuda_copies_captures_and_refuses() -> None:
    report = check_cuda()
    assert report["copied"] and report["replayed"]
    assert "cudaMalloc: " in report["out_of_memory"]


def test_cuda_says_what_is_there() -> None:
    gpu = cuda_device.gpu()
    assert gpu.name and gpu.memory > 2**30 and "." in gpu.compute_capability
    with pytest.raises(EngineError, match="there is no GPU 99"):
        cuda_device.gpu(99)


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", *MODULES])
def test_picture_on_the_gpu_is_near(
    package: Path, pipe: Pipeline, tmp_path: Path, backend: str
) -> None:
    loaded = Package.load(package, verify=False)
    if backend in MODULES:
        skip_unless_supported(backend)
        build(loaded, backend=backend, sizes=SIZES, engine_dir=tmp_path)
    else:
        pytest.importorskip("onnxruntime")
    arguments = {"num_inference_steps": 4, "seed": 3, "scheduler": "ddim"}
    with Pipeline(loaded, backend, engine_dir=tmp_path) as on_gpu:
        ours = on_gpu("a red circle", **arguments).latents  # type: ignore[arg-type]
    assert_close(
        ours,
        pipe("a red circle", **arguments).latents,  # type: ignore[arg-type]
        rel=GPU_LATENTS_REL,
    )


@pytest.mark.parametrize("backend", MODULES)
def test_stripped_plan_is_small_and_answers_the_same(
    package: Path, tmp_path: Path, backend: str
) -> None:
    skip_unless_supported(backend)
    loaded = Package.load(package, verify=False)
    sizes = {}
    for name in ("whole", "stripped"):
        options = BuildOptions(weight_stripped=name == "stripped")
        (built,) = build(
            loaded,
            backend=backend,
            components=["unet"],
            sizes=SIZES,
            engine_dir=tmp_path / name,
            options=options,
        )
        sizes[name] = built.sidecar.size
    assert sizes["stripped"] < sizes["whole"] / 2
    feeds, expected = recorded(package)
    with open_component(loaded, "unet", backend, engine_dir=tmp_path / "stripped") as session:
        assert_close(session.run(feeds)["out_sample"], expected, rel=GPU_COMPONENT_REL)


def recorded(package: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """PyTorch's inputs and output of the UNet."""
    with np.load(package / "reference" / "unet.npz") as arrays:
        feeds = {k.removeprefix("input."): arrays[k] for k in arrays if k.startswith("input.")}
        return feeds, arrays["output.out_sample"]


@pytest.mark.parametrize("backend", MODULES)
def test_refit_answers_as_the_other_weights_do(package: Path, tmp_path: Path, backend: str) -> None:
    """An engine of other weights, opened for this package, and changed while it is open."""
    skip_unless_supported(backend)
    other, loaded = tmp_path / "unet" / "model.onnx", Package.load(package, verify=False)
    other.parent.mkdir()
    with_other_weights(loaded.model_path("unet"), other)
    plan = engine_path(loaded, "unet", backend, tmp_path)
    sizes = profiles(loaded, "unet", SIZES)
    build_plan(other, plan, backend=backend, profiles=sizes, options=BuildOptions(refittable=True))
    feeds, expected = recorded(package)
    with open_session(other) as session:
        without = session.run(feeds)["out_sample"]
    session: Any = open_component(loaded, "unet", backend, engine_dir=tmp_path)
    with session:
        assert_close(session.run(feeds)["out_sample"], expected, rel=GPU_COMPONENT_REL)
        session.refit(other)
        assert_close(session.run(feeds)["out_sample"], without, rel=GPU_COMPONENT_REL)
        session.refit(loaded.model_path("unet"))
        assert_close(session.run(feeds)["out_sample"], expected, rel=GPU_COMPONENT_REL)
