"""Added tokens: split out of a text before byte-pair encoding, as the Rust tokenizer does it.

These are the special tokens, and tokens added after training, such as the `<cat-toy>` of a textual
inversion.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sdexport.runtime.text import normalization

_CIRCLED = ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))
_SPACES = re.compile(f"[{normalization.SPACE_CHARS}]*")


@dataclass(frozen=True)
class AddedToken:
    """A token, and where in a text it matches; the fields are those of the `tokenizers` package.

    Attributes:
      single_word: matches only if no letter, number or mark is next to it.
      lstrip, rstrip: white space before or after it becomes part of the match.
      normalized: matches in the normalized text, and so in capitals as well.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


def assign_ids(tokens: Iterable[AddedToken], vocab: Mapping[str, int]) -> dict[AddedToken, int]:
    """Ids as the Rust tokenizer assigns them: that of the vocabulary, or the next free one.

    Of several tokens with the same content the last one counts.
    """
    by_content: dict[str, tuple[AddedToken, int]] = {}
    highest = -1
    for token in tokens:
        if not token.content:
            continue
        known = by_content.get(token.content)
        number = vocab.get(token.content) if known is None else known[1]
        if number is None:
            number = max(highest + 1, len(vocab))
        highest = max(highest, number)
        by_content[token.content] = token, number
    return dict(by_content.values())


class Splitter:
    """Finds added tokens in a text: leftmost first, and the longest of several that begin there.

    Args:
      tokens: for each token the text to look for, the token and its id.
    """

    def __init__(self, tokens: Iterable[tuple[str, AddedToken, int]]) -> None:
        self._tokens: dict[str, tuple[AddedToken, int]] = {}
        for text, token, number in tokens:
            self._tokens.setdefault(text, (token, number))
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def split(self, text: str) -> list[str | int]:
        """The text with every token replaced by its id."""
        out: list[str | int] = []
        done = 0
        for match in self._pattern.finditer(text):
            start, stop = match.span()
            token, number = self._tokens[match[0]]
            if token.single_word and (
                (start and _is_word(text[start - 1])) or (stop < len(text) and _is_word(text[stop]))
            ):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(normalization.SPACE_CHARS))
            if token.rstrip and (spaces := _SPACES.match(text, stop)):
                stop = spaces.end()
            if done < start:
                out.append(text[done:start])
            out.append(number)
            done = stop
        if done < len(text):
            out.append(text[done:])
        return out


def _is_word(char: str) -> bool:
    r"""The Rust regular expressions' \w."""
    category = unicodedata.category(char)
    return (
        category[0] in "LM"
        or category in ("Nd", "Nl", "Pc")
        or char in "\u200c\u200d"
        or any(first <= ord(char) <= last for first, last in _CIRCLED)
    )
