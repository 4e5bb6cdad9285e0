"""How long prompts may be: each 75 tokens take memory in every layer that reads them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.text.prompt_styles import PLAIN, style_name
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.server.request_checks import TEXTS, texts_of

MOST_TOKENS = 2400
"""Of a prompt in a style that does not truncate it, 32 parts of 75."""
_PART = 75
_NEXT_PART = re.compile(r"\bBREAK\b|\.and\(|\.blend\(|\bAND\b|\", *\"")
"""What begins another part in one of the styles."""


def check_tokens(arguments: Mapping[str, Any], tokenizers: Collection[ClipTokenizer]) -> None:
    """Check the texts of a call; it takes up to a tenth of a second.

    Raises: InvalidArgumentError: a text of too many tokens.
    """
    weights = bool(arguments.get("prompt_weights", False))
    if style_name(arguments.get("prompt_style"), weights=weights) == PLAIN:
        return
    for name in TEXTS:
        for text in texts_of(arguments, name):
            parts = len(_NEXT_PART.findall(text))
            if len(text.encode()) + _PART * parts <= MOST_TOKENS:
                continue  # a token has a byte at least
            longest = max(len(each.encode(each.expand(text))) for each in tokenizers)
            if longest + _PART * parts > MOST_TOKENS:
                raise InvalidArgumentError(
                    f"{name}: about {longest + _PART * parts:,} tokens; at most {MOST_TOKENS:,} "
                    "are read in this prompt_style"
                )
