"""WebGPU: lower precisions, nodes on the CPU, one GPU for a process, and what may be missing."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, load, load_model_from_string, save

from sdexport.engines import EngineError, open_session
from sdexport.engines.backends import available
from sdexport.engines.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    OutOfMemoryError,
)
from sdexport.engines.onnx_file.float32_graph import lower_precisions
from sdexport.engines.ort.float32_session import open_float32
from sdexport.engines.webgpu import webgpu_library as library
from sdexport.engines.webgpu.vulkan_devices import VulkanDevice, vulkan_devices
from sdexport.engines.webgpu.webgpu_session import _out_of_memory as out_of_memory
from tests.helpers.small_attention import attention_feeds, write_attention
from tests.helpers.small_unet import write_small_unet
from tests.helpers.unet_sessions import feeds
from tests.tolerances import COMPONENT_REL, assert_close

GPU, CPU_DEVICE = (
    SimpleNamespace(ep_name=library.PROVIDER, device=SimpleNamespace(type=kind)) for kind in (1, 0)
)


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is registered or started, as in a new process."""
    for name in ("_started", "_provider_device"):
        monkeypatch.setattr(library, name, getattr(library, name).__wrapped__)
    monkeypatch.setattr(library, "_chosen", [])


def fake_onnxruntime(monkeypatch: pytest.MonkeyPatch, **replaced: Any) -> None:
    """An ONNX Runtime that has the plugin and finds one GPU, but for what is replaced."""

    def register(name: str, path: str) -> None:
        raise AssertionError("it is registered")

    parts: dict[str, Any] = {
        "__version__": "1.0",
        "get_available_providers": lambda: [library.PROVIDER],
        "get_ep_devices": lambda: [GPU],
        "register_execution_provider_library": register,
    }
    module = SimpleNamespace(**parts | replaced)
    monkeypatch.setattr(library, "_onnxruntime", lambda: module)
    plugin = SimpleNamespace(get_library_path=lambda: "plugin.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", plugin)


def test_missing_plugin_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_process: None
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sdexport\[webgpu\]'"):
        open_session(write_small_unet(tmp_path / "unet" / "model.onnx"), "webgpu")


def test_onnxruntime_without_plugins_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(__version__="1.20")
    monkeypatch.setattr(library, "import_onnxruntime", lambda: old)
    with pytest.raises(MissingDependencyError, match=r"1\.20 is too old"):
        library._onnxruntime()


def failing(*_: object) -> Any:
    raise RuntimeError("below the minimum\nrequired version")


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"get_ep_devices": list}, "finds no GPU on this machine; ORT_WEBGPU_EP_ALLOW_SOFTWARE"),
        (
            {"get_available_providers": list, "register_execution_provider_library": failing},
            "ONNX Runtime 1.0 cannot load onnxruntime-ep-webgpu: below the minimum required",
        ),
    ],
)
def test_no_gpu_is_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch, new_process: None, replaced: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv(library.SOFTWARE, raising=False)
    fake_onnxruntime(monkeypatch, **replaced)
    with pytest.raises(EngineError, match=message) as caught:
        library.start()
    assert "\n" not in str(caught.value)


def no_loader() -> list[VulkanDevice]:
    raise OSError("libvulkan.so.1: cannot open shared object file")


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (no_loader, r"install libvulkan1 \(Debian, Ubuntu\).*: libvulkan.so.1: cannot open"),
        (list, "Vulkan finds no GPU; install its driver: mesa-vulkan-drivers"),
    ],
)
def test_missing_part_of_vulkan_is_named(
    monkeypatch: pytest.MonkeyPatch,
    new_process: None,
    devices: Callable[[], list[VulkanDevice]],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    fake_onnxruntime(monkeypatch)
    monkeypatch.setattr(library, "vulkan_devices", devices)
    with pytest.raises(EngineError, match=message):
        library.start()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("Failed to get a WebGPU adapter: No supported adapters", "lacks what WebGPU needs"),
        ("Failed to get a WebGPU device: lost", "does not start: Failed to get a WebGPU device"),
    ],
)
def test_gpu_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, new_process: None, error: str, message: str
) -> None:
    def open_graph(*_: object) -> Any:
        raise RuntimeError(error)

    monkeypatch.setattr(sys, "platform", "linux")
    fake_onnxruntime(monkeypatch, SessionOptions=SimpleNamespace)
    monkeypatch.setattr(library, "vulkan_devices", lambda: [VulkanDevice("Card", False)])
    monkeypatch.setattr(library, "open_graph", open_graph)
    with pytest.raises(EngineError, match=message):
        library.start()
    assert not library.computes_float16()


@pytest.mark.parametrize(
    ("platform", "provider", "devices", "expected"),
    [
        ("linux", GPU, [("A", False)], ("A", False)),
        ("linux", GPU, [("llvmpipe", True), ("A", False)], ("A", False)),
        ("linux", GPU, [("A", False), ("B", False)], ("", False)),
        ("linux", GPU, [("llvmpipe", True)], ("llvmpipe", True)),
        ("win32", GPU, [], ("", False)),
        ("darwin", CPU_DEVICE, [], ("", True)),
    ],
)
def test_software_device_is_told_from_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    provider: Any,
    devices: list[tuple[str, bool]],
    expected: tuple[str, bool],
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(library, "vulkan_devices", lambda: [VulkanDevice(*d) for d in devices])
    assert library._adapter(provider) == expected


def test_model_of_the_float16_check_is_what_onnx_reads() -> None:
    model = load_model_from_string(library._HALF_SUM)
    (node,) = model.graph.node
    assert (node.op_type, list(node.input), list(node.output)) == ("Add", ["x", "x"], ["y"])
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16


@pytest.mark.parametrize("device", [0, 1, "gpu", "", None, ["low-power"]])
def test_device_is_a_power_preference(tmp_path: Path, device: Any) -> None:
    model = write_small_unet(tmp_path / "unet" / "model.onnx")
    with pytest.raises(InvalidArgumentError, match="device must be high-performance or low-power"):
        open_session(model, "webgpu", device=device)


def test_software_gpu_is_told_and_not_taken_by_auto(software_gpu: None) -> None:
    assert any("SwiftShader" in name for name, software in vulkan_devices() if software)
    assert library.start().software
    assert "webgpu" not in available()


def test_process_has_one_gpu(software_gpu: None, tmp_path: Path) -> None:
    library.start()
    model = write_small_unet(tmp_path / "unet" / "model.onnx")
    with pytest.raises(InvalidArgumentError, match="has started the high-performance GPU"):
        open_session(model, "webgpu", device="low-power")


@pytest.mark.parametrize(
    ("precision", "external"), [("float16", False), ("float16", True), ("bfloat16", False)]
)
def test_lower_precision_is_computed_in_float32_where_the_gpu_lacks_it(
    software_gpu: None,
    tmp_path: Path,
    precision: str,
    external: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = write_small_unet(tmp_path / "unet" / "model.onnx", precision=precision)
    if external:
        save(load(model), model, save_as_external_data=True, location="data", size_threshold=64)
    assert len(lower_precisions(model)) == 1 and not library.computes_float16()
    with (
        caplog.at_level(logging.INFO),
        open_session(model, "webgpu") as session,
        open_float32(model) as reference,
    ):
        assert "unet: this GPU computes it in float32" in caplog.text
        expected = reference.run(feeds())["out_sample"]
        assert_close(session.run(feeds())["out_sample"], expected, rel=COMPONENT_REL)


def test_nodes_without_a_kernel_are_named(
    software_gpu: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_attention(tmp_path / "unet" / "model.onnx", name="attention\n1", is_causal=1)
    with open_session(model, "webgpu") as session, open_session(model) as reference:
        expected = reference.run(attention_feeds())["y"]
        assert_close(session.run(attention_feeds())["y"], expected, rel=COMPONENT_REL)
    (message,) = [record.getMessage() for record in caplog.records if "kernels" in record.message]
    assert message.startswith("unet: these run on the CPU, as WebGPU has no kernels for them: ")
    assert "Attention (1)" in message and "--opset 18" in message and "\n" not in message


def test_attention_runs_on_the_gpu(
    software_gpu: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_attention(tmp_path / "unet" / "model.onnx")
    with open_session(model, "webgpu") as session, open_session(model) as reference:
        expected = reference.run(attention_feeds())["y"]
        assert_close(session.run(attention_feeds())["y"], expected, rel=COMPONENT_REL)
    assert "kernels" not in caplog.text


def test_sessions_in_threads_do_not_disturb_each_other(software_gpu: None, tmp_path: Path) -> None:
    model = write_small_unet(tmp_path / "unet" / "model.onnx")

    def one_after_the_other(number: int) -> np.ndarray:
        inputs = feeds(1 + number % 2)
        with open_session(model, "webgpu") as session:
            for _ in range(5):
                session.run(inputs)
            embeds = inputs.pop("encoder_hidden_states")
            with session.bind(encoder_hidden_states=embeds) as bound:
                return bound.run(inputs)["out_sample"]

    expected = [one_after_the_other(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one_after_the_other, range(4)))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sessions_that_nobody_closed_are_freed(software_gpu: None, tmp_path: Path) -> None:
    model = write_small_unet(tmp_path / "unet" / "model.onnx")
    session = open_session(model, "webgpu")
    expected = session.run(feeds())["out_sample"]
    inputs = feeds()
    bound = session.bind(encoder_hidden_states=inputs.pop("encoder_hidden_states"))
    del session, bound
    gc.collect()
    with open_session(model, "webgpu") as again:
        np.testing.assert_array_equal(again.run(feeds())["out_sample"], expected)


def test_invalid_buffer_is_a_want_of_memory() -> None:
    memory = "unet: the GPU's memory does not suffice"
    with pytest.raises(OutOfMemoryError, match=memory), out_of_memory("unet"):
        raise EngineError("unet: ONNX Runtime failed: [Invalid Buffer (unlabeled)] is invalid")
    with pytest.raises(EngineError, match="terminated") as caught, out_of_memory("unet"):
        raise EngineError("unet: terminated")
    assert not isinstance(caught.value, MemoryError)


@pytest.mark.parametrize("content", [b"", b"\x08\x07", b"not a model", b"\xff" * 9])
def test_damaged_file_is_an_error_in_one_line(
    software_gpu: None, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "unet" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(EngineError, match="unet") as caught:
        open_session(path, "webgpu")
    assert "\n" not in str(caught.value)
    with open_session(write_small_unet(path), "webgpu") as session:  # the GPU still works
        assert np.isfinite(session.run(feeds())["out_sample"]).all()
