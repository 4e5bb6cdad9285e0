"""Texts of unknown origin in a form in which they are harmless on a terminal."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Which emoji and several scripts need inside of words."""


def escaped(text: str, keep: str = "") -> str:
    """A text that a terminal shows as it is: control characters are escaped, as in a `repr`.

    These are the C0 and C1 controls, with which escape sequences begin, line breaks and separators,
    marks that reorder or hide text (bidi overrides, zero-width characters, tags), and surrogates.

    Args:
      keep: control characters that are not escaped, such as "\\n".
    """
    if text.isprintable():
        return text
    return "".join(char if char in keep or _is_plain(char) else _escape(char) for char in text)


def _is_plain(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
