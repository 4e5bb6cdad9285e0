"""ONNX Runtime on an NVIDIA GPU, with its own CPU build in place of the one for CUDA.

The stand-in says that it has the CUDA provider, runs the graph on the CPU, and keeps what it is
called with.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from sdexport.engines import EngineError, backends, cuda_device, open_session
from sdexport.engines.backends import available, choose
from sdexport.engines.errors import InvalidArgumentError, OutOfMemoryError
from sdexport.engines.ort import cuda_libraries, onnxruntime_session, runtime_library
from tests.helpers.fake_tensorrt import FakeCuda, Status, install, write_plan

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
MISSING = "libcublasLt.so.13 cannot be loaded; run: pip install 'sdexport[gpu]'"
PRINTED = """\
Failed to load /site-packages/nvidia/cu13/lib/libcublasLt.so.13: wrong ELF class
Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file: No such file
Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file: No such file
Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.
"""


class FakeOnnxRuntime(types.SimpleNamespace):
    """onnxruntime-gpu. starts: whether its provider does. uploads: device and number of each."""

    def __init__(self) -> None:
        super().__init__(**vars(onnxruntime))
        self.starts = True
        self.uploads: list[tuple[str, int]] = []
        self.upload_error: Exception | None = None
        self.arguments: dict[str, Any] = {}
        self.OrtValue = types.SimpleNamespace(ortvalue_from_numpy=self._upload)
        self.get_available_providers = lambda: [CUDA, CPU]
        self.InferenceSession = self._open

    def _open(self, path: str, options: Any, **arguments: Any) -> Any:
        self.arguments = arguments
        session = onnxruntime.InferenceSession(path, options, providers=[CPU])
        started = [CUDA, CPU] if self.starts else [CPU]
        session.get_providers = lambda: started  # type: ignore[method-assign]
        return session

    def _upload(self, array: np.ndarray, device: str = "cpu", number: int = 0) -> Any:
        if self.upload_error is not None:
            raise self.upload_error
        self.uploads.append((device, number))
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> FakeOnnxRuntime:
    fake = FakeOnnxRuntime()
    for module in (onnxruntime_session, runtime_library):
        monkeypatch.setattr(module, "ort", fake)
    monkeypatch.setattr(onnxruntime_session, "missing_libraries", lambda: "")
    return fake


@pytest.fixture
def decoder(package: Path) -> Path:
    return package / "vae_decoder" / "model.onnx"


LATENTS = np.zeros((1, 4, 8, 8), np.float32)


@pytest.mark.parametrize("device", [0, 1, 3])
def test_bound_inputs_are_on_the_device_that_runs(
    ort: FakeOnnxRuntime, decoder: Path, device: int
) -> None:
    with open_session(decoder, "onnxruntime-cuda", device=device) as session:
        expected = session.run({"latent_sample": LATENTS})
        with session.bind(latent_sample=LATENTS) as bound:
            np.testing.assert_array_equal(bound.run({})["sample"], expected["sample"])
    assert ort.uploads == [("cuda", device)]
    assert ort.arguments["providers"][0] == (CUDA, {"device_id": str(device)})


def test_bound_inputs_of_providers_with_options_of_their_own(
    ort: FakeOnnxRuntime, decoder: Path
) -> None:
    for providers, uploads in (
        ([(CUDA, {"device_id": 2}), CPU], [("cuda", 2)]),
        ([CUDA, CPU], [("cuda", 0)]),
        ([CPU], []),
    ):
        ort.uploads.clear()
        with open_session(decoder, providers=providers) as session:
            session.bind(latent_sample=LATENTS).close()
        assert ort.uploads == uploads
    with pytest.raises(
        InvalidArgumentError, match="device_id must be the number of a GPU, got 'x'"
    ):
        open_session(decoder, providers=[(CUDA, {"device_id": "x"})])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("CUDA failure 100: no CUDA-capable\ndevice is detected", EngineError),
        ("CUDA failure 2: out of memory", OutOfMemoryError),
    ],
)
def test_bound_inputs_that_cannot_be_copied(
    ort: FakeOnnxRuntime, decoder: Path, words: str, error: type[Exception]
) -> None:
    ort.upload_error = RuntimeError(words)
    with open_session(decoder, "onnxruntime-cuda", device=1) as session:
        with pytest.raises(
            error, match=r"^vae_decoder: ONNX Runtime cannot copy .* to cuda 1: CUDA"
        ):
            session.bind(latent_sample=LATENTS)
        assert np.isfinite(session.run({"latent_sample": LATENTS})["sample"]).all()


def test_provider_that_fails_is_not_replaced_silently(ort: FakeOnnxRuntime, decoder: Path) -> None:
    """By default, ONNX Runtime prints to stdout and runs on the CPU."""
    open_session(decoder, "onnxruntime-cuda").close()
    assert ort.arguments["enable_fallback"] == 0


def test_provider_that_does_not_start_says_why(
    ort: FakeOnnxRuntime, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ort.starts = False
    gpu = install(monkeypatch)
    for fails, words in (
        ({"cudaGetDeviceCount": Status.cudaErrorNoDevice}, "no NVIDIA GPU can be used: cuda"),
        ({}, "no such device, or a driver that is too old"),
    ):
        gpu.fails = fails
        with pytest.raises(EngineError, match=f"could not start {CUDA}: {words}"):
            open_session(decoder, "onnxruntime-cuda")


def test_missing_library_is_named_before_the_graph_is_loaded(
    ort: FakeOnnxRuntime, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would print three lines in colour."""
    monkeypatch.setattr(onnxruntime_session, "missing_libraries", lambda: MISSING)
    words = rf"^vae_decoder: ONNX Runtime cannot start {CUDA}: libcublasLt\.so\.13 cannot be loaded"
    with pytest.raises(EngineError, match=words):
        open_session(decoder, "onnxruntime-cuda")
    assert ort.arguments == {}


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What preload_dlls prints, and whether cuDNN can be loaded."""
    found: dict[str, Any] = {"printed": "", "cudnn": True}
    fake = types.SimpleNamespace(preload_dlls=lambda: print(found["printed"], end=""))  # noqa: T201

    def load(name: str) -> None:
        assert name == cuda_libraries.CUDNN
        if not found["cudnn"]:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_libraries, "import_onnxruntime", lambda: fake)
    monkeypatch.setattr(cuda_libraries, "ctypes", types.SimpleNamespace(CDLL=load))
    cuda_libraries.missing_libraries.cache_clear()
    yield found
    cuda_libraries.missing_libraries.cache_clear()


def test_missing_libraries_are_named_and_nothing_is_printed(
    libraries: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    libraries |= {"printed": PRINTED, "cudnn": False}
    assert cuda_libraries.missing_libraries() == (
        f"libcublasLt.so.13, libcurand.so.10, {cuda_libraries.CUDNN} cannot be loaded; "
        "run: pip install 'sdexport[gpu]'"
    )
    assert capsys.readouterr() == ("", "")


def test_libraries_that_are_all_there(libraries: dict[str, Any]) -> None:
    assert cuda_libraries.missing_libraries() == ""


@pytest.mark.parametrize("device", [-1, True, "0", 1.5, None])
def test_device_that_is_no_number_of_a_gpu(
    ort: FakeOnnxRuntime, decoder: Path, device: Any
) -> None:
    with pytest.raises(InvalidArgumentError, match="device must be the number of a GPU, got"):
        open_session(decoder, "onnxruntime-cuda", device=device)


def test_device_given_twice(ort: FakeOnnxRuntime, decoder: Path) -> None:
    options = {"device_id": 1, "use_tf32": "0"}
    with pytest.raises(InvalidArgumentError, match=r"device is 0, and device_id .* 1; pass device"):
        open_session(decoder, "onnxruntime-cuda", provider_options=options)
    open_session(decoder, "onnxruntime-cuda", device=1, provider_options=options).close()


@pytest.mark.parametrize(
    "name", ["NvTensorRTRTXExecutionProvider", "NvTensorRtRtxExecutionProvider"]
)
def test_rtx_provider_is_a_plugin_that_is_not_loaded(decoder: Path, name: str) -> None:
    with pytest.raises(
        EngineError, match=r"plugin of ONNX Runtime, .* use --backend tensorrt-rtx$"
    ):
        open_session(decoder, providers=name)


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """onnxruntime-gpu and TensorRT-RTX are installed, next to ONNX Runtime for the CPU."""
    gpu = install(monkeypatch)
    installed = {"onnxruntime", "onnxruntime-cuda", "tensorrt-rtx"}
    monkeypatch.setattr(backends, "_installed", lambda name: name in installed)
    monkeypatch.setattr(backends, "_has_cuda_provider", lambda: True)
    monkeypatch.setattr(cuda_libraries, "missing_libraries", lambda: "")
    backends._warn_once.cache_clear()
    yield gpu
    backends._warn_once.cache_clear()


def test_auto_on_a_gpu_that_tensorrt_rtx_does_not_know(
    auto: FakeCuda, package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = write_plan(package / "unet" / "model.onnx", tmp_path / "unet.plan", "tensorrt-rtx")
    assert available(plan_of=lambda name: plan) == [
        "tensorrt-rtx",
        "onnxruntime-cuda",
        "onnxruntime",
    ]
    assert caplog.messages == []
    auto.compute_capability, auto.name = (9, 0), b"NVIDIA H200"
    for _ in range(2):
        assert choose(plan_of=lambda name: plan) == "onnxruntime-cuda"
    (warning,) = caplog.messages
    assert warning.startswith(
        "auto does not take tensorrt-rtx: TensorRT-RTX does not run on NVIDIA H200 (compute "
        "capability 9.0), only on 8.0, 8.6, 8.9, 12.0, 12.1"
    )


def test_auto_with_a_plan_for_other_gpus(
    auto: FakeCuda, package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for capabilities, words in (("12.0", "12.0"), ("\x1b[31m", "\\x1b[31m")):
        model, target = package / "unet" / "model.onnx", {"compute_capabilities": capabilities}
        plan = write_plan(model, tmp_path / "unet.plan", "tensorrt-rtx", target=target)
        assert choose(plan_of=lambda name, plan=plan: plan) == "onnxruntime-cuda"
        assert f"it was built for compute capability {words}, here is 8.9" in caplog.messages[-1]


def test_auto_without_a_library_says_why_it_takes_the_cpu(
    auto: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose() == "onnxruntime-cuda"
    monkeypatch.setattr(cuda_libraries, "missing_libraries", lambda: MISSING)
    assert choose() == "onnxruntime"
    monkeypatch.setattr(cuda_device, "absent", lambda: "cuda-bindings is not installed; run: pip")
    assert choose() == "onnxruntime"
    auto.fails = {"cudaGetDeviceCount": Status.cudaErrorNoDevice}
    assert caplog.messages == [
        f"auto does not take onnxruntime-cuda: {MISSING}",
        "auto does not take onnxruntime-cuda: cuda-bindings is not installed; run: pip",
    ]
