"""The decoder is opened while a call waits for the denoiser, if OpenVINO has it compiled."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", exc_type=ImportError)

from sdexport import Package, Pipeline
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines import Session
from sdexport.engines.cache import user_cache
from sdexport.runtime import component_sessions, opening_ahead
from sdexport.runtime.component_engines import open_component

CALL: dict[str, Any] = {"num_inference_steps": 1, "height": 64, "width": 64, "seed": 1}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The components in the order in which they are open.

    The denoiser is opened until it is asked whether the decoder is compiled, or that is open.
    """
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(opening_ahead, "LARGE", 1)
    monkeypatch.setattr(opening_ahead.os, "cpu_count", lambda: 2)
    names: list[str] = []
    decoder, waits = threading.Event(), threading.Event()
    is_compiled = component_sessions.is_compiled

    def asked(*arguments: Any) -> bool:
        found = is_compiled(*arguments)
        if not found:
            waits.set()
        return found

    def note(package: Package, graph: str, *arguments: Any, **options: Any) -> Session:
        if graph == "unet":
            while not (decoder.wait(0.01) or waits.wait(0.01)):
                pass
        session = open_component(package, graph, *arguments, **options)
        names.append(graph)
        if graph == "vae_decoder":
            decoder.set()
        return session

    monkeypatch.setattr(component_sessions, "is_compiled", asked)
    monkeypatch.setattr(component_sessions, "open_component", note)
    return names


def image() -> np.ndarray:
    with Pipeline(Package.load(PACKAGE_DIR), "openvino") as pipeline:
        return np.asarray(pipeline("a red circle", **CALL).images[0])


def test_decoder_is_opened_meanwhile_from_the_second_process_on(opened: list[str]) -> None:
    expected = image()
    assert opened == ["text_encoder", "unet", "vae_decoder"]
    opened.clear()
    assert np.array_equal(image(), expected)
    assert opened == ["text_encoder", "vae_decoder", "unet"]
