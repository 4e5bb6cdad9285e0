"""How long prompts may be: each 75 tokens take memory in every layer that reads them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.text.prompt_styles import PLAIN, style_name
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.runtime.text_encoders import TextEncoders
from sdexport.server.request_checks import TEXTS, texts_of

MOST_TOKENS = 2400
"""Of a prompt in a style that does not truncate it, 32 parts of 75."""
MOST_ROWS = 48
"""Of 75 tokens in such a prompt: up to 20 places of a row stay empty before a comma."""
_PART = 75
_NEXT_PART = re.compile(r"\bBREAK\b|\.and\(|\.blend\(|\bAND\b|\", *\"")
"""What begins another part in one of the styles."""


def limit_texts(arguments: Mapping[str, Any], encoders: TextEncoders) -> None:
    """Check the texts of a call before it, and let the text encoders bound what only they know.

    They know the words that LoRAs bring, and in ComfyUI's syntax the textual inversions.

    Raises: InvalidArgumentError: see check_tokens.
    """
    encoders.most_rows = MOST_ROWS
    check_tokens(arguments, encoders.tokenizers.values())


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
            read = {each: each.expand(text) for each in tokenizers}
            if max(map(_most_tokens, (text, *read.values()))) + _PART * parts <= MOST_TOKENS:
                continue  # they need not be counted
            longest = max(len(each.encode(expanded)) for each, expanded in read.items())
            if longest + _PART * parts > MOST_TOKENS:
                raise InvalidArgumentError(
                    f"{name}: about {longest + _PART * parts:,} tokens; at most {MOST_TOKENS:,} "
                    "are read in this prompt_style"
                )


def _most_tokens(text: str) -> int:
    """How many tokens a text has at most: each has a byte, and NFC makes up to three of one."""
    return len(text) if text.isascii() else 3 * len(text.encode("utf-8", "surrogatepass"))
