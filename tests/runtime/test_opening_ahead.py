"""Large components are opened in a thread while the text encoder works."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from sdexport import EngineError, Package, Pipeline
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines import Session, SessionBase
from sdexport.runtime import component_sessions, opening_ahead
from sdexport.runtime.component_backends import BackendSpec
from sdexport.runtime.component_engines import open_component
from sdexport.runtime.opening_ahead import OpeningAhead, gains

FAST: dict[str, Any] = {"num_inference_steps": 1, "height": 64, "width": 64, "seed": 1}
SPEC = BackendSpec("onnxruntime")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Package:
    """The demo model, whose components count as large, on two cores."""
    monkeypatch.setattr(opening_ahead, "LARGE", 1)
    monkeypatch.setattr(opening_ahead.os, "cpu_count", lambda: 2)
    return Package.load(PACKAGE_DIR, verify=False)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The name of the thread that opened a component, by its name."""
    threads: dict[str, str] = {}

    def note(package: Package, graph: str, *arguments: Any, **options: Any) -> Session:
        threads[graph] = threading.current_thread().name
        return open_component(package, graph, *arguments, **options)

    monkeypatch.setattr(component_sessions, "open_component", note)
    return threads


def test_images_are_the_same_and_only_what_is_used_is_opened(
    loaded: Package, opened: dict[str, str]
) -> None:
    with Pipeline(loaded) as pipeline:
        image = pipeline("a red circle", **FAST).images[0]
        main = threading.current_thread().name
        ahead = "sdexport-open"
        assert opened == {"text_encoder": main, "unet": ahead, "vae_decoder": main}
        opened.clear()
        pipeline("a red circle", **FAST)
        assert not opened
    with Pipeline(loaded) as pipeline:
        pipeline("a red circle", output_type="latent", image=image, strength=1.0, **FAST)
        assert set(opened) == {"text_encoder", "unet", "vae_encoder"}


def test_the_text_encoder_works_while_the_denoiser_opens(
    loaded: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = threading.Event()

    def wait(package: Package, graph: str, *arguments: Any, **options: Any) -> Session:
        if graph == "unet":
            assert encoded.wait(60)
        return open_component(package, graph, *arguments, **options)

    monkeypatch.setattr(component_sessions, "open_component", wait)
    with Pipeline(loaded) as pipeline:
        encode = pipeline.text_encoders.encode

        def note(*arguments: Any, **options: Any) -> Any:
            found = encode(*arguments, **options)
            encoded.set()
            return found

        monkeypatch.setattr(pipeline.text_encoders, "encode", note)
        assert pipeline("a red circle", **FAST).images


def test_what_fails_is_raised_by_the_call_and_tried_again(
    loaded: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(package: Package, graph: str, *arguments: Any, **options: Any) -> Session:
        if graph == "unet":
            raise EngineError("unet: no room")
        return open_component(package, graph, *arguments, **options)

    with Pipeline(loaded) as pipeline:
        with monkeypatch.context() as patch:
            patch.setattr(component_sessions, "open_component", fail)
            with pytest.raises(EngineError, match="no room"):
                pipeline("a red circle", **FAST)
        assert pipeline("a red circle", **FAST).images


def test_closing_waits_and_closes_what_was_not_taken() -> None:
    go_on, closed = threading.Event(), list[str]()

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    def open_one(name: str, spec: BackendSpec) -> Any:
        assert go_on.wait(60)
        return Fake(name)

    ahead = OpeningAhead(open_one)
    ahead.start({"unet": SPEC, "vae_decoder": SPEC}, lambda name, session: None)
    threading.Timer(0.05, go_on.set).start()
    ahead.close()
    assert closed[:1] == ["unet"]
    assert ahead.take("unet") is None


def test_components_are_opened_when_they_are_needed_if_no_thread_can_start(
    loaded: Package, opened: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(opening_ahead.threading.Thread, "start", fail)
    with Pipeline(loaded) as pipeline:
        assert pipeline("a red circle", **FAST).images
    assert opened["unet"] == threading.current_thread().name


def test_nothing_is_opened_ahead_where_it_does_not_gain(
    loaded: Package, opened: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pipeline(loaded, low_memory=True) as pipeline:
        pipeline("a red circle", **FAST)
    assert "sdexport-open" not in opened.values()
    assert gains(loaded, "unet", SPEC) and not gains(loaded, "unet", BackendSpec("tensorrt"))
    assert not gains(loaded, "missing", SPEC)
    monkeypatch.setattr(opening_ahead.os, "cpu_count", lambda: None)
    assert not gains(loaded, "unet", SPEC)
    monkeypatch.undo()
    size = sum(file.stat().st_size for file in Path(loaded.folder / "unet").iterdir())
    assert size < opening_ahead.LARGE and not gains(loaded, "unet", SPEC)


def test_components_are_closed_after_the_only_image(
    opened: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image after which they are opened again gives the same."""
    closed: list[str] = []
    close = SessionBase.close

    def note(session: SessionBase) -> None:
        closed.append(session.name)
        close(session)

    monkeypatch.setattr(SessionBase, "close", note)
    package = Package.load(PACKAGE_DIR, verify=False)
    with Pipeline(package, expected_images=1) as pipeline:
        first = pipeline("a red circle", **FAST).images[0]
        assert list(dict.fromkeys(closed)) == ["text_encoder", "unet"]
        opened.clear()
        second = pipeline("a blue star", **FAST).images[0]
        assert set(opened) == {"text_encoder", "unet"}
    closed.clear()
    with Pipeline(package, expected_images=2) as pipeline:
        images = [pipeline(text, **FAST).images[0] for text in ("a red circle", "a blue star")]
        assert not {"text_encoder", "vae_decoder"} & {*closed}
    assert [each.tobytes() for each in images] == [first.tobytes(), second.tobytes()]
