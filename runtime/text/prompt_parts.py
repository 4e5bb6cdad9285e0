"""The parts of a prompt: `a AND b :0.7`, and tags such as `<lora:name:0.8>`.

Source: the prompt syntax of AUTOMATIC1111's web UI 1.10.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdexport.runtime.text.prompt_editing import EditedPrompt
from sdexport.runtime.text.prompt_weights import MAX_WEIGHT

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*:\s*(?P<weight>[-+]?(?:\d+\.?|\d*\.\d+))\s*\Z")
_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>", re.IGNORECASE)


@dataclass(frozen=True)
class PromptPart:
    """One part of a prompt: a prompt of its own, and the weight of its prediction."""

    text: EditedPrompt
    weight: float = 1.0


def split_parts(text: str) -> list[PromptPart]:
    """The parts between ANDs, each with the weight at its end, such as `:0.7`; default 1.

    A prompt without AND is one part, and as in the web UI it may have a weight as well. Weights
    are clipped to -1000..1000.

    Example:
        >>> from sdexport.runtime.text.prompt_parts import split_parts
        >>> [(part.text.at(1, 4), part.weight) for part in split_parts("a cat :1.2 AND a dog")]
        [('a cat', 1.2), (' a dog', 1.0)]
    """
    parts = []
    for part in _AND.split(text):
        colon = part.rfind(":")
        match = None if colon < 0 else _WEIGHT.match(part, len(part[:colon].rstrip()))
        if match is None:
            parts.append(PromptPart(EditedPrompt(part.rstrip())))
        else:
            weight = min(max(float(match["weight"]), -MAX_WEIGHT), MAX_WEIGHT)
            parts.append(PromptPart(EditedPrompt(part[: match.start()]), weight))
    return parts


def without_tags(text: str) -> tuple[str, list[str]]:
    """The text without tags of LoRAs, LyCORIS and hypernetworks, and these tags."""
    return _TAG.sub("", text), tags(text)


def tags(text: str) -> list[str]:
    """The tags of LoRAs, LyCORIS and hypernetworks in a text, such as `<lora:name:0.8>`."""
    return [match[0] for match in _TAG.finditer(text)]
