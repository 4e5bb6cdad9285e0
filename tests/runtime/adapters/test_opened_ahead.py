"""Graphs that take adapters are opened in a thread, as other large components are."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import ControlNet, IPAdapter, T2IAdapter, load_pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines import Session
from sdexport.runtime import component_sessions, opening_ahead
from sdexport.runtime.component_engines import open_component
from tests.helpers.control_nets import control_image
from tests.helpers.lora_files import ATTENTION, random_lora, save_peft

CALL: dict[str, Any] = {"num_inference_steps": 1, "height": 64, "width": 64, "seed": 1}
IMAGE = control_image(64, 64)
LONG_S = 60.0


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["lora", "controlnet", "t2i_adapter", "ip_adapter"])
def test_the_graph_of_a_kind_is_opened_in_a_thread(
    kind: str,
    backend: str,
    lora_folder: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening_ahead.os, "cpu_count", lambda: 2)
    threads: dict[str, str] = {}

    def note(package: Any, graph: str, *arguments: Any, **options: Any) -> Session:
        threads[graph] = threading.current_thread().name
        return open_component(package, graph, *arguments, **options)

    monkeypatch.setattr(component_sessions, "open_component", note)
    package = lora_folder / "package"
    if kind == "lora":
        unet = Checkpoint.open(lora_folder / "checkpoint").load("unet")
        pairs = random_lora({"unet": unet}, ATTENTION)
        arguments: dict[str, Any] = {"loras": [save_peft(tmp_path / "a.safetensors", pairs)]}
    elif kind == "controlnet":
        net = request.getfixturevalue("control_folder") / "first"
        arguments = {"controlnets": [ControlNet(net, IMAGE)]}
    else:
        folder = request.getfixturevalue("image_adapters")
        package = folder / "package"
        arguments = {
            "t2i_adapter": {"t2i_adapters": [T2IAdapter(folder / "t2i", IMAGE)]},
            "ip_adapter": {"ip_adapters": [IPAdapter(folder / "base", IMAGE)]},
        }[kind]
    images = []
    for large in (opening_ahead.LARGE, 1):
        monkeypatch.setattr(opening_ahead, "LARGE", large)
        with load_pipeline(package, backend) as pipe:
            images += pipe("a red circle", **CALL, **arguments).images
        assert threads.pop(f"unet.{kind}").startswith("sdexport-open") == (large == 1)
    assert np.array_equal(*map(np.asarray, images))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("guess_mode", [False, True])
def test_controlnets_are_opened_while_the_denoiser_is(
    backend: str,
    guess_mode: bool,
    lora_folder: Path,
    control_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening_ahead.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(opening_ahead, "LARGE", 1)
    is_open, waits = threading.Event(), []
    compiled: list[str] = []

    def note(package: Any, graph: str, *arguments: Any, **options: Any) -> Session:
        if graph == "unet.controlnet":
            waits.append(is_open.wait(LONG_S))
        session = open_component(package, graph, *arguments, **options)
        if graph == "controlnet":
            is_open.set()
        return session

    def note_compilation(self: Any, *arguments: Any) -> Any:
        compiled.append(self.name)
        return compile_(self, *arguments)

    monkeypatch.setattr(component_sessions, "open_component", note)
    if backend == "openvino":
        from sdexport.engines.ov.openvino_session import OpenVinoSession

        compile_ = OpenVinoSession._compile
        monkeypatch.setattr(OpenVinoSession, "_compile", note_compilation)
    net = ControlNet(control_folder / "first", IMAGE, guess_mode=guess_mode)
    with load_pipeline(lora_folder / "package", backend) as pipe:
        pipe("a red circle", **CALL, controlnets=[net])
    assert waits == [True]
    assert compiled.count("controlnet") == (backend == "openvino")
