"""The decoder is opened while a call waits for the denoiser, if it is prepared or cached."""

from __future__ import annotations

import sys
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
from sdexport.engines.ort.prepared.prepared_session import PreparedSession
from sdexport.engines.ov import compiled_graph, deferred_graphs
from sdexport.runtime import component_sessions, opening_ahead, store_graphs
from sdexport.runtime.component_backends import BackendSpec
from sdexport.runtime.component_engines import open_component
from sdexport.runtime.expected_calls import ImageCall, expect_call
from sdexport.runtime.opening_ahead import opens_at_once

DECODER = "vae_decoder"
CALL: dict[str, Any] = {"num_inference_steps": 1, "height": 64, "width": 64, "seed": 1}


class Opened:
    """The components in the order in which they are open; see `opened`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, for another pipeline."""
        self.names: list[str] = []
        self.decoder, self.waits = threading.Event(), threading.Event()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opened:
    """The denoiser is opened until the decoder is open, or is found not to be compiled."""
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(opening_ahead, "LARGE", 1)
    monkeypatch.setattr(opening_ahead.os, "cpu_count", lambda: 2)
    found = Opened()
    opens_at_once = component_sessions.opens_at_once

    def asked(*arguments: Any) -> bool:
        is_stored = opens_at_once(*arguments)
        if not is_stored:
            found.waits.set()
        return is_stored

    def note(package: Package, graph: str, *arguments: Any, **options: Any) -> Session:
        if graph == "unet":
            while not (found.decoder.wait(0.01) or found.waits.wait(0.01)):
                pass
        session = open_component(package, graph, *arguments, **options)
        found.names.append(graph)
        if graph == "vae_decoder":
            found.decoder.set()
        return session

    monkeypatch.setattr(component_sessions, "opens_at_once", asked)
    monkeypatch.setattr(component_sessions, "open_component", note)
    return found


def image(backend: str = "openvino") -> np.ndarray:
    with Pipeline(Package.load(PACKAGE_DIR), backend) as pipeline:
        return np.asarray(pipeline("a red circle", **CALL).images[0])


def test_decoder_is_opened_meanwhile_from_the_second_process_on(opened: Opened) -> None:
    expected = image()
    assert opened.names == ["text_encoder", "unet", "vae_decoder"]
    opened.reset()
    assert np.array_equal(image(), expected)
    assert opened.names == ["text_encoder", "vae_decoder", "unet"]


@pytest.mark.skipif(sys.platform != "linux", reason="kept on Linux only")
def test_decoder_that_onnxruntime_maps_is_opened_meanwhile_and_its_pages_freed(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = []
    trim = PreparedSession.trim

    def note(session: PreparedSession, room: int | None = None) -> bool:
        freed.append(session.name)
        return trim(session, room)

    expected = image("onnxruntime")
    assert opened.names == ["text_encoder", "unet", DECODER]
    store_graphs.store(PACKAGE_DIR, [DECODER])
    monkeypatch.setattr(PreparedSession, "trim", note)
    opened.reset()
    assert np.array_equal(image("onnxruntime"), expected)
    assert opened.names == ["text_encoder", DECODER, "unet"]
    assert freed == [DECODER]


@pytest.mark.skipif(sys.platform != "linux", reason="kept on Linux only")
def test_only_what_onnxruntime_would_map_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    loaded, unchecked = Package.load(PACKAGE_DIR), Package.load(PACKAGE_DIR, verify=False)

    def known(package: Package = loaded, **options: Any) -> bool:
        return opens_at_once(package, DECODER, BackendSpec("onnxruntime", options), ImageCall(8, 8))

    assert not known()
    store_graphs.store(PACKAGE_DIR, [DECODER])
    assert known()
    assert not known(unchecked) and not known(prepacking=False)
    engines = tmp_path / "engines"
    (engines / "onnxruntime").mkdir(parents=True)
    (engines / "onnxruntime" / f"{DECODER}.onnx").touch()  # it cannot be used
    assert not known(engine_dir=engines)
    monkeypatch.setattr(opening_ahead, "fitting_engine", lambda *_: engines)
    assert known(engine_dir=engines, providers=["CPUExecutionProvider"], optimization="all")
    assert not known(engine_dir=engines, prepacking=False)
    assert not known(engine_dir=engines, optimization="basic")


def test_only_what_the_session_would_open_counts_as_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(deferred_graphs, "_deferred", {})
    loaded, unchecked = Package.load(PACKAGE_DIR), Package.load(PACKAGE_DIR, verify=False)
    call = ImageCall(64, 64)

    def known(package: Package = loaded, call: ImageCall = call, **options: Any) -> bool:
        return opens_at_once(package, DECODER, BackendSpec("openvino", options), call)

    assert not known()
    with open_component(loaded, DECODER, "openvino") as session:
        expect_call(loaded, DECODER, session, call)
    assert known()
    assert not known(unchecked)
    assert not known(call=ImageCall(128, 64)) and not known(call=ImageCall(64, 64, 2))
    assert not known(precision="bf16") and not known(rewrite=False) and not known(static=False)
    assert not known(cache_dir=tmp_path)
    monkeypatch.setattr(compiled_graph, "installed_version", lambda: "1")
    assert not known()
