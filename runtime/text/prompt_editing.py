"""Prompts that change from step to step: `[from:to:when]`, `[a|b]`.

Source: the prompt syntax of AUTOMATIC1111's web UI 1.10. There, emphasis in the brackets and
stray brackets are left for the parser of weights (prompt_weights.py), and so they are here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKENS = re.compile(r"(?P<plain>(?:[^\\\[\]():|]|\\.)+)|(?P<special>[\[\]():|])")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_OPENING = {")": "(", "]": "["}


@dataclass(frozen=True)
class _Edit:
    """`[before:after:when]`; with a point, `when` is a fraction of the steps."""

    before: _Text
    after: _Text
    when: str

    def chosen(self, step: int, steps: int) -> _Text:
        when = float(self.when) * (steps if "." in self.when else 1)
        last = steps if when >= steps else int(max(when, -1.0))
        return self.before if step <= last else self.after


@dataclass(frozen=True)
class _Alternation:
    """`[a|b|c]`: the next one in each step."""

    options: list[_Text]

    def chosen(self, step: int, steps: int) -> _Text:
        return self.options[(step - 1) % len(self.options)]


_Text = list["str | _Edit | _Alternation | _Text"]
"""Text, and what it contains that changes from step to step."""


@dataclass
class _Open:
    """A bracket that is not closed yet, with the text after it, divided by ":" or "|"."""

    bracket: str
    parts: list[_Text] = field(default_factory=lambda: [[]])
    separators: str = ""


class EditedPrompt:
    """A prompt, and its text in each step.

    `[from:to:when]` is `from` up to the step `when`, and `to` after it; a number with a point is a
    fraction of the steps, another one the number of a step. `[to:when]` adds, `[from::when]`
    removes. `[a|b|c]` is a in the first step, b in the second, and so on in turn. Both nest.
    A text in which a bracket is not closed, or a vertical bar stands outside of brackets, is taken
    as the web UI takes it: the former is text, and the latter makes all of the prompt text.

    Args:
      literal: brackets mean nothing.
    Example:
        >>> from sdexport.runtime.text.prompt_editing import EditedPrompt
        >>> prompt = EditedPrompt("a [red:blue:0.5] [cat|dog]")
        >>> [prompt.at(step, 4) for step in (1, 2, 3, 4)]
        ['a red cat', 'a red dog', 'a blue cat', 'a blue dog']
    """

    def __init__(self, text: str, *, literal: bool = False) -> None:
        parsed = None if literal else _parse(text)
        self._text: _Text = [text] if parsed is None else parsed
        self.changes = not all(isinstance(part, str) for part in self._text)
        """Whether the text may differ from step to step."""

    def at(self, step: int, steps: int) -> str:
        """The text in a step, counted from 1."""
        return "".join(_chosen(self._text, step, steps))

    def last_change(self, steps: int) -> int:
        """The last step whose text differs from the text before it; 1 if none does."""
        texts = [self.at(step, steps) for step in range(1, steps + 1)]
        return max((i + 1 for i in range(1, steps) if texts[i] != texts[i - 1]), default=1)


def _chosen(text: _Text, step: int, steps: int) -> Iterator[str]:
    """The strings of a text in one step. Without recursion: brackets may nest deeply."""
    waiting = [iter(text)]
    while waiting:
        part = next(waiting[-1], None)
        if part is None:
            waiting.pop()
        elif isinstance(part, str):
            yield part
        else:
            inside = part if isinstance(part, list) else part.chosen(step, steps)
            waiting.append(iter(inside))


def _parse(text: str) -> _Text | None:
    """The text with its edits and alternations; None if the web UI takes it literally."""
    open_: list[_Open] = []
    done: _Text = []
    position = 0
    for match in _TOKENS.finditer(text):
        if match.start() != position:
            return None  # a backslash at the end of the text or of a line
        position = match.end()
        token = match[0]
        target = open_[-1].parts[-1] if open_ else done
        if match.lastgroup == "plain":
            target.append(token)
        elif token in "([":
            open_.append(_Open(token))
        elif token in ":|" and open_:
            open_[-1].separators += token
            open_[-1].parts.append([])
        elif token == "|":
            return None
        elif token == ":" or not open_:
            target.append(token)
        else:
            closed = open_[-1].bracket == _OPENING[token] and _closed(open_[-1], token)
            if closed:
                open_.pop()
                (open_[-1].parts[-1] if open_ else done).append(closed)
            elif not _give_up(open_, done):
                return None
            else:
                done.append(token)
    if position != len(text) or not _give_up(open_, done):
        return None
    return _joined(done)


def _closed(bracket: _Open, closing: str) -> _Text | _Edit | _Alternation | None:
    """What a pair of brackets is; None if it is nothing, and so its brackets are text."""
    parts, separators = bracket.parts, bracket.separators
    if not separators or (closing == ")" and separators == ":"):
        return [bracket.bracket, *_between(parts, separators), closing]
    if closing == ")":
        return None
    if set(separators) == {"|"}:
        return _Alternation([_joined(part) for part in parts])
    when = _WHEN.fullmatch("".join(part if isinstance(part, str) else "x" for part in parts[-1]))
    if separators not in (":", "::") or when is None:
        return None
    before = _joined(parts[0]) if separators == "::" else []
    return _Edit(before, _joined(parts[-2]), when[1])


def _give_up(open_: list[_Open], done: _Text) -> bool:
    """Take all open brackets as text; False if that leaves a vertical bar outside of brackets."""
    for bracket in open_:
        if "|" in bracket.separators:
            return False
        done.append(bracket.bracket)
        done += _between(bracket.parts, bracket.separators)
    open_.clear()
    return True


def _between(parts: list[_Text], separators: str) -> _Text:
    """The parts with their separators, as one text."""
    text = list(parts[0])
    for separator, part in zip(separators, parts[1:], strict=True):
        text += [separator, *part]
    return text


def _joined(text: _Text) -> _Text:
    """The same text, flat if nothing in it changes."""
    if _is_constant(text):
        return ["".join(_chosen(text, 1, 1))]
    return text


def _is_constant(text: _Text) -> bool:
    waiting = [iter(text)]
    while waiting:
        part = next(waiting[-1], None)
        if part is None:
            waiting.pop()
        elif isinstance(part, list):
            waiting.append(iter(part))
        elif not isinstance(part, str):
            return False
    return True
