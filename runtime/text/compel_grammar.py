r"""The grammar of Compel's prompts; compel_parser.py says what its rules mean.

A parser of alternatives that are tried in order; what was read at a place is remembered, so that
the time grows with the length of the prompt and not with the depth of its brackets. Each rule is a
method from a place to (place after it, what it read), or None. White space before a rule is
skipped.

Source: compel 2.5, the grammar in compel/prompt_parser.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

MORE, LESS = 1.1, 0.9
MAX_DEPTH = 60
"""Rules that call each other more deeply, two for a pair of brackets, read nothing."""

_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r'(?:\\[()",.+=-]|[-+](?![ \t\r\n()",.+=-]|\Z)|[^ \t\n\r\x0b\x0c()",.+=-])+')
_FREE_WORD = re.compile(r"[^ \t\n\r\x0b\x0c]+")
_QUOTED = re.compile(r'"((?:\\"|[^"\n\r])*)"')
_NUMBER = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)|-?[0-9]+")
_SIGNS = re.compile(r"\++|-+")
_KEYWORD = re.compile(r"[A-Za-z0-9_-]+")
_TO_WHITE_SPACE = {r"\t": "\t", r"\n": "\n", r"\f": "\f", r"\r": "\r"}

Place = tuple[int, list[Any]]
"""The place after what was read, and what was read."""


@dataclass(frozen=True)
class Attention:
    """What an operator of weight applies to: texts, and further operators."""

    weight: float
    children: list[Any]


@dataclass(frozen=True)
class Swap:
    """`original.swap(other)`, of which the original counts."""

    original: list[Any]


@dataclass(frozen=True)
class Lora:
    """`withLora(name, weight)`, as it is written."""

    text: str


class CompelGrammar:
    """The rules, applied to one text; what they read are strings, Attention, Swap and Lora."""

    def __init__(self, text: str, depth: int = 0) -> None:
        self._text, self._depth = text, depth
        self._memo: dict[tuple[str, int], Place | None] = {}

    def operator(self, place: int, names: Sequence[str]) -> Place | None:
        """`(a, "b", ...).name(1, 2)`: the prompts and the options."""
        found = self._after(place, "(")
        prompts: list[Any] = []
        while found is not None:
            item = self._first(found, self.target, self._quoted_prompt)
            if item is None:
                return None
            prompts.append(item[1])
            found = self._after(item[0], ",")
            if found is None:
                found = self._after(item[0], ")")
                break
        start = None if found is None else self._skip(found)
        name = next((n for n in names if start and self._text.startswith(f".{n}", start)), None)
        if start is None or name is None:
            return None
        return self._arguments(start + len(name) + 1, prompts)

    def _arguments(self, place: int, prompts: list[Any]) -> Place | None:
        found = self._after(place, "(")
        if found is None:
            return None
        end, options = self.options(found)
        closed = self._after(end, ")")
        return None if closed is None else (closed, [prompts, options])

    def prompt(self, place: int) -> Place:
        """Anything up to the end: every text is a prompt."""
        words: list[Any] = []
        rules = (self._swap, self._lora, self.attention, self.quoted, self.brackets)
        while True:
            found = self._first(place, *rules)
            if found is None:
                match = re.compile(r"[ \t\n\r\x0b\x0c]*").match(self._text, place)
                word = _FREE_WORD.match(self._text, match.end() if match else place)
                if word is None:
                    return len(self._text), words
                found = word.end(), [word[0]]
            place, read = found
            words += read

    def loras(self, place: int) -> int:
        """The place after any number of LoRAs."""
        while (found := self._lora(place)) is not None:
            place = found[0]
        return place

    def target(self, place: int) -> Place | None:
        """What an operator may follow."""
        return self._first(place, self.quoted, self.brackets, self.word)

    def word(self, place: int) -> Place | None:
        """A word without syntax; escaped signs belong to it."""
        match = _WORD.match(self._text, self._skip(place))
        return (match.end(), [match[0]]) if match else None

    def quoted(self, place: int) -> Place | None:
        """A fragment in double quotes."""
        return self._remembered("quoted", place, partial(self._in_quotes, rule="fragment"))

    def _quoted_prompt(self, place: int) -> Place | None:
        return self._in_quotes(place, rule="prompt")

    def _in_quotes(self, place: int, rule: str) -> Place | None:
        match = _QUOTED.match(self._text, self._skip(place))
        if match is None:
            return None
        inside = match[1]
        for code, char in _TO_WHITE_SPACE.items():
            inside = inside.replace(code, char)
        inside = inside.replace('\\"', '"')
        if not inside.strip():
            return match.end(), [""]
        inner = CompelGrammar(inside.replace('"', '\\"').expandtabs(), self._depth)
        end, read = inner.prompt(0) if rule == "prompt" else inner.fragment(0)
        if inner._text[end:].strip(" \t\r\n"):
            return None
        return match.end(), read

    def brackets(self, place: int) -> Place | None:
        """A fragment in round brackets, which have no effect of their own."""
        return self._remembered("brackets", place, self._in_brackets)

    def _in_brackets(self, place: int) -> Place | None:
        start = self._after(place, "(")
        if start is None:
            return None
        end, read = self.fragment(start)
        closed = self._after(end, ")")
        return None if closed is None else (closed, read)

    def fragment(self, place: int, *, commas: bool = True) -> Place:
        """Any number of words, quotes, brackets and operators."""
        read: list[Any] = []
        rules = (self._lora, self.attention, self._swap, self.brackets, self.quoted, self.word)
        while True:
            found = self._first(place, *rules)
            if found is None and commas:
                start = self._skip(place)
                if self._text[start : start + 1] in (",", "."):
                    found = start + 1, [self._text[start]]
            if found is None:
                return place, read
            place = found[0]
            read += found[1]

    def attention(self, place: int) -> Place | None:
        """A weighted target: `x.attend(1.2)`, `(x)1.2`, `"x"--`, `x++`."""
        return self._remembered("attention", place, self._attention)

    def _attention(self, place: int) -> Place | None:
        target = self.target(place)
        if target is not None and (start := self._after(target[0], ".attend")) is not None:
            start = self._after(start, "(")
            found = None if start is None else self._weight(self._skip(start), numbers=True)
            closed = None if found is None else self._after(found[0], ")")
            if closed is not None and found is not None:
                return closed, [Attention(found[1], target[1])]
        for target, numbers in (
            (self._first(place, self.quoted, self.brackets), True),
            (self.word(place), False),
        ):
            if target is not None:
                found = self._weight(target[0], numbers=numbers)
                if found is not None:
                    return found[0], [Attention(found[1], target[1])]
        return None

    def _weight(self, place: int, *, numbers: bool) -> tuple[int, float] | None:
        if match := _SIGNS.match(self._text, place):
            base = MORE if match[0][0] == "+" else LESS
            return match.end(), float(base ** min(len(match[0]), 1000))
        if numbers and (match := _NUMBER.match(self._text, place)):
            return match.end(), float(match[0])
        return None

    def _swap(self, place: int) -> Place | None:
        return self._remembered("swap", place, self._read_swap)

    def _read_swap(self, place: int) -> Place | None:
        target = self.target(place)
        start = None if target is None else self._after(target[0], ".swap")
        start = None if start is None else self._after(start, "(")
        if target is None or start is None:
            return None
        end, _ = self.fragment(start, commas=False)
        comma = self._after(end, ",")
        if comma is not None:
            end = self.options(comma)[0]
        closed = self._after(end, ")")
        return None if closed is None else (closed, [Swap(target[1])])

    def _lora(self, place: int) -> Place | None:
        start = self._skip(place)
        opened = self._after(start, "useLora")
        opened = self._after(start, "withLora") if opened is None else opened
        opened = None if opened is None else self._after(opened, "(")
        name = None if opened is None else _KEYWORD.match(self._text, self._skip(opened))
        if name is None:
            return None
        end, comma = name.end(), self._after(name.end(), ",")
        if comma is not None and (number := _NUMBER.match(self._text, self._skip(comma))):
            end = number.end()
        closed = self._after(end, ")")
        return None if closed is None else (closed, [Lora(self._text[start:closed])])

    def options(self, place: int) -> Place:
        """Numbers, flags and key=value, divided by commas."""
        options: list[Any] = []
        end = place
        while (found := self._option(place)) is not None:
            end = found[0]
            options += found[1]
            comma = self._after(end, ",")
            if comma is None:
                break
            place = comma
        return end, options

    def _option(self, place: int) -> Place | None:
        start = self._skip(place)
        keyword = _KEYWORD.match(self._text, start)
        equals = None if keyword is None else self._after(keyword.end(), "=")
        if keyword is not None and equals is not None:
            value = _NUMBER.match(self._text, self._skip(equals)) or _KEYWORD.match(
                self._text, self._skip(equals)
            )
            if value:
                return value.end(), [keyword[0]]
        match = _NUMBER.match(self._text, start) or keyword
        return None if match is None else (match.end(), [match[0]])

    def _first(self, place: int, *rules: Callable[[int], Place | None]) -> Place | None:
        return next((found for rule in rules if (found := rule(place)) is not None), None)

    def _remembered(
        self, name: str, place: int, rule: Callable[[int], Place | None]
    ) -> Place | None:
        key = name, self._skip(place)
        if key not in self._memo:
            self._depth += 1
            self._memo[key] = rule(key[1]) if self._depth <= MAX_DEPTH else None
            self._depth -= 1
        return self._memo[key]

    def _skip(self, place: int) -> int:
        match = _SPACE.match(self._text, place)
        return match.end() if match else place

    def _after(self, place: int, literal: str) -> int | None:
        """The place after a literal, or None."""
        start = self._skip(place)
        return start + len(literal) if self._text.startswith(literal, start) else None
