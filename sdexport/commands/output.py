"""Everything that the command line prints: control characters are escaped, wherever a text is from.

Names in a package, prompts in images and file names are not trusted; an escape sequence in them
could hide or forge what a terminal shows.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from sdexport.engines.printable_text import escaped

_BARS = re.compile("(\x1b\\[A)")
"""What tqdm writes to reach the bar above; kept, as libraries show bars of their own."""


def echo(*lines: str, err: bool = False) -> None:
    """Print lines. A line break inside of one is escaped too, so that it cannot forge another."""
    for line in lines or ("",):
        click.echo(escaped(line), err=err)


def json_document(text: str) -> str:
    """A JSON document whose control characters, DEL and C1 among them, are escaped as JSON does."""
    return re.sub("[^ -~\n]", lambda match: _in_json(match[0]), text)


def _in_json(char: str) -> str:
    if escaped(char) == char:
        return char
    return json.dumps(char)[1:-1] if char != "\x7f" else "\\u007f"


class OneLineFormatter(logging.Formatter):
    """Formats each log record on one line, apart from a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.exc_info or record.stack_info:
            return escaped(text, "\n")
        return escaped(" ".join(text.split()))


class EscapedStream:
    """A text stream that escapes control characters, for what libraries print themselves.

    Line breaks, carriage returns, tabs, and the one sequence that progress bars need are kept.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Returns: the length of `text`, as it was before."""
        parts = _BARS.split(text)
        self.stream.write("".join(p if _BARS.fullmatch(p) else escaped(p, "\n\r\t") for p in parts))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def escaped_streams() -> Iterator[None]:
    """Escape what is written to stdout and stderr by Python code inside the block."""
    own = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    escaping = {name: EscapedStream(stream) for name, stream in own.items() if stream is not None}
    for name, stream in escaping.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in escaping.items():
            if getattr(sys, name) is stream:  # click puts another one in place of a broken pipe
                setattr(sys, name, own[name])


@contextmanager
def escaped_usage_errors() -> Iterator[None]:
    """Escape the messages of click's errors, which repeat arguments such as names of files."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = escaped(error.message, "\n")
        raise
