"""Which program's prompt syntax is read, and warnings about syntax that is not."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterable

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import plain, shown
from sdexport.runtime.text.prompt_embeds import Text
from sdexport.runtime.text.prompt_parts import tags, without_tags

logger = logging.getLogger(__name__)

PLAIN, AUTOMATIC1111, COMFYUI, COMPEL = "plain", "automatic1111", "comfyui", "compel"
STYLES = (PLAIN, AUTOMATIC1111, COMFYUI, COMPEL)
ALIASES = {
    **{"none": PLAIN, "text": PLAIN, "diffusers": PLAIN},
    **{"a1111": AUTOMATIC1111, "auto1111": AUTOMATIC1111, "webui": AUTOMATIC1111},
    **{"sdwebui": AUTOMATIC1111, "forge": AUTOMATIC1111, "comfy": COMFYUI, "invokeai": COMPEL},
}
_NAMED = 5
"""Tags that a warning names; it counts the others."""
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
"""Matches a run of digits in one way only, so that long ones take linear time."""
_SYNTAX: tuple[tuple[str, str, frozenset[str]], ...] = (
    (r"\[[^\[\]|]*\|[^\[\]]*\]", AUTOMATIC1111, frozenset({AUTOMATIC1111})),
    (rf"\[[^\[\]]*:\s*{_NUMBER}\s*\]", AUTOMATIC1111, frozenset({AUTOMATIC1111})),
    (
        rf"(?<!\\)\((?:[^()\\:]|\\.)*(?:[^\d()\\:]:\s*{_NUMBER}|:\s*\d*\.\d+)\s*\)",
        AUTOMATIC1111,
        frozenset({AUTOMATIC1111, COMFYUI}),
    ),
    (r"(?<!\\)\(\([^()]+\)\)(?![\d.+-])", AUTOMATIC1111, frozenset({AUTOMATIC1111, COMFYUI})),
    (r"\[\[[^\[\]]+\]\]", AUTOMATIC1111, frozenset({AUTOMATIC1111})),
    (r"(?<!\\)\)(?:\+{1,}|-{1,}(?!\w)|\d*\.\d+)", COMPEL, frozenset({COMPEL})),
    (r"[\")]\.(?:blend|and|swap|attend)\([^()]*\)", COMPEL, frozenset({COMPEL})),
)
"""What other programs read as syntax: a pattern, the style that is suggested for it, and the styles
that read it."""
_PATTERNS = [(re.compile(pattern), suggested, read) for pattern, suggested, read in _SYNTAX]
_KEYWORD = re.compile(r"\b(?:AND|BREAK)\b")
_WORD = re.compile(r"\w+")
_NEIGHBOURS = 40
"""How many characters before and after AND are searched for the words next to it."""


def style_name(name: object, *, weights: bool = False) -> str:
    """The name of a prompt style, from that or an alias of it, in any case.

    Args:
      name: None is "plain", or "automatic1111" with `weights`.
      weights: the argument `prompt_weights`, which is another name for "automatic1111".
    Raises: InvalidArgumentError: an unknown name, or one that contradicts `weights`.
    """
    if name is None:
        return AUTOMATIC1111 if weights else PLAIN
    if not isinstance(name, str):
        raise InvalidArgumentError(f"prompt_style must be a name, got {shown(name)}")
    lowered = re.sub(r"[\s_-]", "", name.lower())
    style = ALIASES.get(lowered, lowered)
    if style not in STYLES:
        near = difflib.get_close_matches(lowered, (*STYLES, *ALIASES), 1)
        suggestion = f"; did you mean '{near[0]}'?" if near else ""
        raise InvalidArgumentError(
            f"unknown prompt_style {shown(name)}; choose one of {', '.join(STYLES)}{suggestion}"
        )
    if weights and style != AUTOMATIC1111:
        raise InvalidArgumentError(
            f"prompt_weights is the style 'automatic1111'; it cannot be combined with '{style}'"
        )
    return style


def read_tags(texts: Iterable[Text], style: str) -> list[Text]:
    """The texts without tags such as `<lora:name:0.8>`, which a warning names; plain ones as is."""
    if style == PLAIN:
        return list(texts)
    named: dict[str, None] = {}

    def rest(text: str) -> str:
        text, found = without_tags(text)
        named.update(dict.fromkeys(found))
        return text

    read = [rest(text) if isinstance(text, str) else tuple(map(rest, text)) for text in texts]
    if named:
        logger.warning(
            "prompt: %s not applied and left out: give LoRAs as loras, or with --lora-dir the "
            "folder that has them",
            f"{_listed(named)} {'is' if len(named) == 1 else 'are'}",
        )
    return read


def _listed(tags: Collection[str]) -> str:
    """The first of some tags, and how many others there are."""
    more = f" and {len(tags) - _NAMED} more" if len(tags) > _NAMED else ""
    return f"{', '.join(plain(tag) for tag in list(tags)[:_NAMED])}{more}"


def warn_about_unread_syntax(texts: Iterable[str], style: str) -> None:
    """Log one warning if texts hold syntax of another style, which is read as words."""
    found: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        found |= unread_syntax(text, style)
    if found:
        first, suggested = next(iter(found.items()))
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        logger.warning(
            "prompt: %s%s read as words, not as syntax; use --prompt-style %s "
            "(prompt_style='%s') if it is meant as such",
            shown(first),
            f"{others} are" if others else " is",
            suggested,
            suggested,
        )


def unread_syntax(text: str, style: str) -> dict[str, str]:
    """The syntax in a text that a style does not read, and the style that is suggested for it.

    Ordinary brackets are none, nor is AND between two words in capitals.
    """
    found: dict[str, str] = {}
    if style == PLAIN:
        found |= dict.fromkeys(tags(text), AUTOMATIC1111)
    if style != AUTOMATIC1111 and ("AND" in text or "BREAK" in text):
        for match in _KEYWORD.finditer(text):
            before = _WORD.findall(text[max(match.start() - _NEIGHBOURS, 0) : match.start()])[-1:]
            after = _WORD.findall(text[match.end() : match.end() + _NEIGHBOURS])[:1]
            if not before + after or not "".join(before + after).isupper():
                found[match[0]] = AUTOMATIC1111
    if any(bracket in text for bracket in "()[]"):
        for pattern, suggested, read in _PATTERNS:
            if style not in read:
                found |= {match[0]: suggested for match in pattern.finditer(text)}
    return found
