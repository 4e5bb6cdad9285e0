"""Prompts that would take much memory are rejected, and no others."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest

from sdexport import Pipeline
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.runtime.text_encoders import EncoderVariant
from sdexport.server.prompt_length import MOST_ROWS, MOST_TOKENS, check_tokens, limit_texts
from tests.helpers.live_server import LiveServer

STYLES = ("automatic1111", "comfyui", "compel")
LONG = (
    *("x " * 10_000, "\U0001f600" * 5_000, "\u0e01" * 5_000, "! " * 5_000, "BREAK " * 3_000),
    *("a AND " * 3_000, '("' + 'a", "' * 3_000 + 'a").and()', "( " * 5_000),
)


@cache
def tokenizers() -> tuple[ClipTokenizer, ...]:
    return (Package.load(PACKAGE_DIR, verify=False).tokenizer("text_encoder"),)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "prompt_2", "negative_prompt_2"])
def test_long_texts_are_rejected_by_name(style: str, name: str) -> None:
    for text in LONG:
        for value in (text, ["a", text]):
            arguments: dict[str, Any] = {"prompt": "a", "prompt_style": style, name: value}
            with pytest.raises(InvalidArgumentError, match=rf"^{name}: about [\d,]+ tokens"):
                check_tokens(arguments, tokenizers())


@pytest.mark.parametrize("style", STYLES)
def test_texts_that_people_write_are_read(style: str) -> None:
    for text in ("", "a " * 1_000, "a (detailed:1.2) painting, " * 60, "x BREAK y AND z"):
        check_tokens({"prompt": text, "prompt_style": style}, tokenizers())
    for text in LONG:
        check_tokens({"prompt": text}, tokenizers())  # it is truncated
    check_tokens({"prompt": "a" * MOST_TOKENS, "prompt_style": style}, [])  # tokens are not counted


@pytest.mark.parametrize("style", STYLES)
def test_textual_inversions_count_as_their_vectors(style: str) -> None:
    words = ["<s>", *(f"<s>_{i}" for i in range(1, 32))]
    several = [each.with_tokens(words) for each in tokenizers()]
    check_tokens({"prompt": "<s>" * 70, "prompt_style": style}, several)
    for text in ("<s>" * 800, "<s>" * 76, "\U0001d160" * 600):  # NFC makes three of each
        assert len(text.encode()) <= MOST_TOKENS
        with pytest.raises(InvalidArgumentError, match=r"^prompt: about [\d,]+ tokens"):
            check_tokens({"prompt": text, "prompt_style": style}, several)


@pytest.mark.parametrize("style", STYLES)
def test_text_encoders_bound_the_rows_of_a_text(style: str, demo_pipe: Pipeline) -> None:
    encoders = copy.copy(demo_pipe.text_encoders)
    texts = ["a", "a " * 1_000]
    for most in (14, None):
        encoders.most_rows = most
        assert encoders.encode(texts, prompt_style=style).embeds.shape[:2] == (2, 14 * 77)
    encoders.most_rows = 13
    with pytest.raises(InvalidArgumentError, match="a text has 14 rows of tokens"):
        encoders.encode(texts, prompt_style=style)
    encoders.encode(texts)  # they are truncated


@pytest.mark.parametrize("style", STYLES)
def test_words_of_loras_count_as_their_vectors(style: str, demo_pipe: Pipeline) -> None:
    encoders, arguments = copy.copy(demo_pipe.text_encoders), {"prompt": "q " * 100}
    limit_texts({**arguments, "prompt_style": style}, encoders)
    words = {"q": {"text_encoder": np.zeros((75, 96), np.float32)}}
    adapted = encoders.adapted(lambda session: [EncoderVariant(session)], (), words)
    with pytest.raises(InvalidArgumentError, match=rf"has 100 rows .* at most {MOST_ROWS} are"):
        adapted.encode([arguments["prompt"]], prompt_style=style)


def test_a_job_with_a_long_prompt_fails(server: LiveServer) -> None:
    job = {"prompt": LONG[0], "prompt_style": "comfyui", "num_inference_steps": 1}
    found = server.finished({**job, "width": 64, "height": 64})
    assert found["status"] == "failed" and "tokens" in found["error"]["message"]
    assert found["error"]["type"] == "invalid_request"
