"""Rows of tokens: given to an encoder one at a time, and only once while they are remembered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Package, Pipeline
from sdexport.engines import EngineError, Session
from sdexport.engines.session import Feeds
from sdexport.runtime.text_encoders import REMEMBERED, TextEncoders
from tests.helpers.counting_session import Counting

SHORT: dict[str, Any] = {"num_inference_steps": 1, "seed": 0}


@pytest.fixture
def encoder(pipe: Pipeline) -> Counting:
    return Counting(pipe.session("text_encoder"))


@pytest.fixture
def encoders(package: Path, encoder: Counting) -> TextEncoders:
    return TextEncoders(Package.load(package, verify=False), lambda name: encoder)


def test_each_row_is_computed_alone_and_once(encoders: TextEncoders, encoder: Counting) -> None:
    texts = ["", "", "a red circle", "a blue star", "a red circle"]
    first = encoders.encode(texts, 2).embeds
    assert encoder.batches == [1, 1, 1]
    assert (first[0] == first[1]).all() and (first[2] == first[4]).all()
    assert encoders.encode(texts, 2).embeds.tobytes() == first.tobytes()
    encoders.encode(["", "a green square"], 1)
    assert encoder.batches == [1] * 4  # the negative prompt is known


def test_what_is_beside_a_text_changes_no_bit(encoders: TextEncoders, package: Path) -> None:
    with Pipeline(Package.load(package, verify=False)) as fresh:
        expected = fresh.text_encoders.encode(["a blue star"]).embeds
    encoders.encode(["a red circle"])
    found = encoders.encode(["", "a blue star", "a red circle"], 1).embeds
    assert found[1:2].tobytes() == expected.tobytes()


def test_remembered_embeddings_are_safe_from_the_caller(encoders: TextEncoders) -> None:
    found = encoders.encode(["a red circle"]).embeds
    before = found.copy()
    found[:] = np.nan
    assert encoders.encode(["a red circle"]).embeds.tobytes() == before.tobytes()


def test_skipped_layers_and_other_rows_are_kept_apart(
    encoders: TextEncoders, encoder: Counting
) -> None:
    whole = encoders.encode(["a red circle"]).embeds
    skipped = encoders.encode(["", "a red circle"], 1, clip_skip=1).embeds
    assert np.abs(whole[0] - skipped[1]).max() > 0
    weighted = encoders.encode(["(a:1.3) red circle"], prompt_weights=True).embeds
    assert np.abs(weighted - whole).max() > 0
    assert encoders.encode(["a red circle"]).embeds.tobytes() == whole.tobytes()
    assert len(encoder.batches) == 3  # the weighted row has the tokens of the first


def test_the_oldest_rows_are_forgotten(encoders: TextEncoders, encoder: Counting) -> None:
    for number in range(REMEMBERED + 1):
        encoders.encode(["", f"number {number}"], 1)
    assert len(encoder.batches) == REMEMBERED + 2
    encoders.encode(["", "number 2"], 1)
    assert len(encoder.batches) == REMEMBERED + 2  # "" was met in each
    encoders.encode(["number 0"])
    assert len(encoder.batches) == REMEMBERED + 3


def test_new_weights_give_new_embeddings(encoders: TextEncoders, encoder: Counting) -> None:
    encoders.encode(["a red circle"])
    encoder._refits += 1
    encoders.encode(["a red circle"])
    assert len(encoder.batches) == 2


def test_numbers_that_are_not_finite_are_not_remembered(
    package: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(feeds: Feeds) -> dict[str, np.ndarray]:
        return {name: value * np.nan for name, value in encoder._compute(feeds).items()}

    session: Any = Counting(encoder)
    encoders = TextEncoders(Package.load(package, verify=False), lambda name: session)
    with monkeypatch.context() as patched:
        patched.setattr(session, "_compute", broken)
        for _ in range(2):
            with pytest.raises(EngineError, match="text_encoder: NaN or infinity"):
                encoders.encode(["a red circle"])
    assert np.isfinite(encoders.encode(["a red circle"]).embeds).all()


def test_threads_get_the_same_rows(encoders: TextEncoders) -> None:
    texts = [f"number {i % 5}" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: encoders.encode([text]).embeds.tobytes(), texts))
    for text, bits in zip(texts, found, strict=True):
        assert bits == encoders.encode([text]).embeds.tobytes()


def test_a_known_prompt_needs_no_encoder_in_low_memory(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    plain = Package.open

    def watched(self: Package, component: str, *arguments: Any, **options: Any) -> Session:
        opened.append(component)
        return plain(self, component, *arguments, **options)

    monkeypatch.setattr(Package, "open", watched)
    with Pipeline(Package.load(package, verify=False), low_memory=True) as small:
        first = small("a red circle", **SHORT)
        again = small("a red circle", **SHORT)
    assert opened == ["text_encoder", "unet", "vae_decoder", "unet", "vae_decoder"]
    assert again.latents.tobytes() == first.latents.tobytes()
