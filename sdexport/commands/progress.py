"""Progress of a command on stderr: a bar on a terminal, else a plain line every five seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sdexport.commands.output import echo
from sdexport.commands.verbosity import is_set
from sdexport.engines.exit_actions import UNDO
from sdexport.engines.printable_text import escaped

REDRAW, LINE = 1.0, 5.0
"""Seconds between two updates of a bar's clock, and between two plain lines."""


class Progress:
    """What a command is doing, and how much of it is done. Made by `progress`.

    Args:
      total: how many steps, or bytes, there are; None if that is not known yet.
    """

    def __init__(self, command: str, total: int | None, unit: str) -> None:
        from tqdm import tqdm

        self.total = total
        self._command, self._unit, self._what, self._done = command, unit, "", 0
        self._started = time.monotonic()
        self._quiet = is_set("quiet")
        self._bar = tqdm(
            total=total,
            desc=command,
            unit=unit,
            unit_scale=unit == "B",
            disable=True if self._quiet else None,  # None: only on a terminal
            leave=False,
        )

    def begin(self, what: str) -> None:
        """Name the step that begins, and count it."""
        self._what = what
        self._bar.set_description(escaped(what))
        self.advance()

    def advance(self, count: int = 1) -> None:
        """Count steps or bytes."""
        self._done += count
        self._bar.total = self.total
        self._bar.update(count)

    def show(self, what: str, share: float) -> None:
        """Name the current step, and set how much of the total is done, 0 to 1."""
        self._what, self._done = what, round((self.total or 0) * share)
        self._bar.set_description(escaped(what))
        self._bar.n = self._done
        self._bar.refresh()

    def print(self, line: str) -> None:
        """Print a line of results on stdout without the bar in it."""
        self._bar.clear()
        echo(line)
        self._bar.refresh()

    def tick(self) -> None:
        """Redraw the bar with the time that has passed, or write a line where there is no bar."""
        if not self._bar.disable:
            self._bar.refresh()
        elif not self._quiet:
            what = f"{self._command}: {self._what}" if self._what else self._command
            echo(f"{what} ({self._count()}{self._seconds():.0f} s)", err=True)

    @property
    def period(self) -> float:
        """Seconds between two calls of `tick`."""
        return LINE if self._bar.disable else REDRAW

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _count(self) -> str:
        scale = 1e6 if self._unit == "B" else 1
        unit = " MB" if self._unit == "B" else ""
        return f"{self._done / scale:.0f}/{self.total / scale:.0f}{unit}, " if self.total else ""


@contextmanager
def progress(total: int | None, command: str, unit: str = "it") -> Iterator[Progress]:
    """Show progress on stderr while a command works; nothing with -q.

    Args:
      unit: "it" for steps, "B" for bytes.
    """
    shown = Progress(command, total, unit)
    done = threading.Event()

    def run_clock() -> None:
        while not done.wait(shown.period):
            shown.tick()

    clock = threading.Thread(target=run_clock, daemon=True)
    clock.start()
    try:
        with UNDO.during(shown.close):
            yield shown
    finally:
        done.set()
        clock.join()
        shown.close()
