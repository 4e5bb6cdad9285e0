"""What CLIP's tokenizer does before byte-pair encoding: Unicode normalization, lower case, words.

Equal to the Rust tokenizer of transformers, which mixes versions of Unicode.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.text import unicode_tables

SPACE_CHARS = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_SPACES = re.compile(f"[{SPACE_CHARS}]+")
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d|[{letters}]+|[{numbers}]|[^{space}{letters}{numbers}]+"
)
_ASCII_WORDS = re.compile(_WORDS.format(letters="a-zA-Z", numbers="0-9", space=SPACE_CHARS))
# In capitals these are words, but no special tokens, and are split again.
_CAPITAL_SPECIAL = {
    "<|startoftext|>": ("<|", "startoftext", "|>"),
    "<|endoftext|>": ("<|", "endoftext", "|>"),
}
# Scripts with composites newer than Unicode 9, the version of the Rust tokenizer's NFC.
_NEWER_COMPOSITES = (
    (0x11930, 0x11938),
    (0x105C0, 0x105FF),
    (0x11380, 0x113FF),
    (0x16100, 0x1613F),
    (0x16D40, 0x16D7F),
)


def check_unicode(text: str) -> None:
    """Raises: InvalidArgumentError: lone surrogates, which UTF-8 cannot encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"tokenizer: the text is not valid Unicode: lone surrogate at {error.start}"
        ) from None


def lower_nfc(text: str) -> str:
    """NFC and lower case; white space stays as it is."""
    return text.lower() if text.isascii() else _lower(_nfc(text))


def normalize(text: str) -> str:
    """NFC and lower case, with each run of white space replaced by one space."""
    return _lower(_SPACES.sub(" ", _nfc(text)))


def pre_tokenize(text: str) -> list[str]:
    """Split a text from `lower_nfc` or `normalize` into the words that are encoded separately."""
    found = (_ASCII_WORDS if text.isascii() else _unicode_words()).findall(text)
    if "|>" in text and not _CAPITAL_SPECIAL.keys().isdisjoint(found):
        return [part for piece in found for part in _CAPITAL_SPECIAL.get(piece, (piece,))]
    return found


def _ranges(table: str) -> Iterator[tuple[int, int]]:
    """First and last code point of each range in a packed table."""
    numbers = [int(word, 36) for word in table.split()]
    at = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        yield at + gap, at + gap + length - 1
        at += gap + length


def _character_class(table: str) -> str:
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in _ranges(table))


@cache
def _unicode_words() -> re.Pattern[str]:
    letters = _character_class(unicode_tables.LETTERS)
    numbers = _character_class(unicode_tables.NUMBERS)
    return re.compile(_WORDS.format(letters=letters, numbers=numbers, space=SPACE_CHARS))


@cache
def _lower_case() -> dict[int, int]:
    """Where the Rust tokenizer differs from `str.lower`: new letters, and sigma at word ends."""
    numbers = [int(word, 36) for word in unicode_tables.LOWER_CASE.split()]
    return {0x3A3: 0x3C3} | dict(zip(numbers[::2], numbers[1::2], strict=True))


@cache
def _not_composed() -> frozenset[str]:
    """Characters that Python's NFC moves or composes and that of the Rust tokenizer does not."""
    known = {c for first, last in _ranges(unicode_tables.MARKS) for c in range(first, last + 1)}
    newer = {c for first, last in _NEWER_COMPOSITES for c in range(first, last + 1)}
    marks = (c for c in range(0x300, 0x1F000) if unicodedata.combining(chr(c)))
    return frozenset(chr(c) for c in newer.union(c for c in marks if c not in known))


def _lower(text: str) -> str:
    return text.translate(_lower_case()).lower()


def _nfc(text: str) -> str:
    if unicodedata.is_normalized("NFC", text) and _not_composed().isdisjoint(text):
        return text
    out, start = [], 0
    for i, char in enumerate(text):
        if char in _not_composed():
            out += [unicodedata.normalize("NFC", text[start:i]), char]
            start = i + 1
    return "".join(out) + unicodedata.normalize("NFC", text[start:])
