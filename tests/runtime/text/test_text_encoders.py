"""Rows of tokens: encoded one at a time, and only once while they are cached."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Package, Pipeline
from sdexport.engines import EngineError, Session
from sdexport.engines.session import Feeds
from sdexport.runtime import component_sessions
from sdexport.runtime.component_engines import open_component
from sdexport.runtime.text_encoders import CACHED_ROWS, TextEncoders
from tests.helpers.counting_session import Counting

SHORT: dict[str, Any] = {"num_inference_steps": 1, "seed": 0}


@pytest.fixture
def encoder(pipe: Pipeline) -> Counting:
    return Counting(pipe.session("text_encoder"))


@pytest.fixture
def encoders(package: Path, encoder: Counting) -> TextEncoders:
    return TextEncoders(Package.load(package, verify=False), lambda name: encoder)


def test_each_row_is_encoded_alone_and_once(encoders: TextEncoders, encoder: Counting) -> None:
    texts = ["", "", "a red circle", "a blue star", "a red circle"]
    first = encoders.encode(texts, 2).embeds
    assert encoder.batches == [1, 1, 1]
    assert (first[0] == first[1]).all() and (first[2] == first[4]).all()
    assert encoders.encode(texts, 2).embeds.tobytes() == first.tobytes()
    encoders.encode(["", "a green square"], 1)
    assert encoder.batches == [1] * 4  # the negative prompt is cached


def test_embeddings_do_not_depend_on_the_other_texts(encoders: TextEncoders, package: Path) -> None:
    with Pipeline(Package.load(package, verify=False)) as fresh:
        expected = fresh.text_encoders.encode(["a blue star"]).embeds
    encoders.encode(["a red circle"])
    found = encoders.encode(["", "a blue star", "a red circle"], 1).embeds
    assert found[1:2].tobytes() == expected.tobytes()


def test_changing_the_embeddings_does_not_change_the_cache(encoders: TextEncoders) -> None:
    found = encoders.encode(["a red circle"]).embeds
    before = found.copy()
    found[:] = np.nan
    assert encoders.encode(["a red circle"]).embeds.tobytes() == before.tobytes()


def test_clip_skip_and_weights_are_not_confused_in_the_cache(
    encoders: TextEncoders, encoder: Counting
) -> None:
    whole = encoders.encode(["a red circle"]).embeds
    skipped = encoders.encode(["", "a red circle"], 1, clip_skip=1).embeds
    assert np.abs(whole[0] - skipped[1]).max() > 0
    weighted = encoders.encode(["(a:1.3) red circle"], prompt_weights=True).embeds
    assert np.abs(weighted - whole).max() > 0
    assert encoders.encode(["a red circle"]).embeds.tobytes() == whole.tobytes()
    assert len(encoder.batches) == 3  # the weighted row has the same ids as the first


def test_the_oldest_rows_are_dropped_from_the_cache(
    encoders: TextEncoders, encoder: Counting
) -> None:
    for number in range(CACHED_ROWS + 1):
        encoders.encode(["", f"number {number}"], 1)
    assert len(encoder.batches) == CACHED_ROWS + 2
    encoders.encode(["", "number 2"], 1)
    assert len(encoder.batches) == CACHED_ROWS + 2  # "" was used in each call
    encoders.encode(["number 0"])
    assert len(encoder.batches) == CACHED_ROWS + 3


def test_a_refit_invalidates_the_cache(encoders: TextEncoders, encoder: Counting) -> None:
    encoders.encode(["a red circle"])
    encoder._refits += 1
    encoders.encode(["a red circle"])
    assert len(encoder.batches) == 2


def test_outputs_that_are_not_finite_are_not_cached(
    package: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(feeds: Feeds) -> dict[str, np.ndarray]:
        return {name: value * np.nan for name, value in encoder._compute(feeds).items()}

    session: Any = Counting(encoder)
    encoders = TextEncoders(Package.load(package, verify=False), lambda name: session)
    with monkeypatch.context() as patched:
        patched.setattr(session, "_compute", broken)
        for _ in range(2):
            with pytest.raises(EngineError, match="text_encoder: the output holds NaN or infinity"):
                encoders.encode(["a red circle"])
    assert np.isfinite(encoders.encode(["a red circle"]).embeds).all()


def test_threads_get_the_same_embeddings(encoders: TextEncoders) -> None:
    texts = [f"number {i % 5}" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: encoders.encode([text]).embeds.tobytes(), texts))
    for text, bits in zip(texts, found, strict=True):
        assert bits == encoders.encode([text]).embeds.tobytes()


def test_low_memory_does_not_open_the_encoder_for_a_cached_prompt(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def watched(package: Package, graph: str, *arguments: Any, **options: Any) -> Session:
        opened.append(graph)
        return open_component(package, graph, *arguments, **options)

    monkeypatch.setattr(component_sessions, "open_component", watched)
    with Pipeline(Package.load(package, verify=False), low_memory=True) as small:
        first = small("a red circle", **SHORT)
        again = small("a red circle", **SHORT)
    assert opened == ["text_encoder", "unet", "vae_decoder", "unet", "vae_decoder"]
    assert again.latents.tobytes() == first.latents.tobytes()
