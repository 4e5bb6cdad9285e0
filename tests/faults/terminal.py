"""A terminal for commands: what a user sees of it when they have ended."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

if sys.platform != "win32":
    import pty
    import termios

_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|[\r\n\b]|[^\x1b\r\n\b]+|\x1b")


class Terminal:
    """A pseudo-terminal, and everything that was written to it.

    slave: the descriptor that a process gets as its standard streams.
    """

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        self._before = self._attributes()
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the other side was closed
            while data := os.read(self._master, 65536):
                self._written += data

    def _attributes(self) -> list[Any]:
        found: list[Any] = termios.tcgetattr(self.slave)
        found[3] &= ~getattr(termios, "PENDIN", 0)  # a state, and no setting
        return found

    @property
    def text(self) -> str:
        return bytes(self._written).decode(errors="replace")

    def problems(self) -> list[str]:
        """What a command that has ended left different from how it found it."""
        after = self._attributes()
        lines, column, hidden = _screen(self.text)
        found = [] if after == self._before else ["the settings of the terminal"]
        found += ["a hidden cursor"] if hidden else []
        found += [f"a line that does not end: {lines[-1]!r}"] if column or lines[-1].strip() else []
        return found + [f"a bar: {line!r}" for line in lines if "it/s" in line or "%|" in line]

    def close(self) -> None:
        os.close(self.slave)
        self._reader.join(5)
        os.close(self._master)


@contextmanager
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    try:
        yield opened
    finally:
        opened.close()


def _screen(text: str) -> tuple[list[str], int, bool]:
    """What a text leaves on the screen: lines, the cursor's column, whether it is hidden."""
    lines, line, column, hidden = [""], 0, 0, False
    for match in _CONTROL.finditer(text):
        part, final = match[0], match[2]
        if part == "\r":
            column = 0
        elif part == "\b":
            column = max(column - 1, 0)
        elif part == "\n":
            line += 1
            lines += [""] * (line + 1 - len(lines))
        elif final is None:
            padded = lines[line].ljust(column)
            lines[line] = padded[:column] + part + padded[column + len(part) :]
            column += len(part)
        elif final == "A":
            line = max(line - int(match[1] or 1), 0)
        elif final == "K":
            lines[line] = lines[line][:column]
        elif match[1] == "?25":
            hidden = final == "l"
    return lines[: line + 1], column, hidden
