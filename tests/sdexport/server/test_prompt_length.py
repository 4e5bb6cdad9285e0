"""Prompts that would take much memory are rejected, and no others."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.server.prompt_length import MOST_TOKENS, check_tokens
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


def test_a_job_with_a_long_prompt_fails(server: LiveServer) -> None:
    job = {"prompt": LONG[0], "prompt_style": "comfyui", "num_inference_steps": 1}
    found = server.finished({**job, "width": 64, "height": 64})
    assert found["status"] == "failed" and "tokens" in found["error"]["message"]
    assert found["error"]["type"] == "invalid_request"
