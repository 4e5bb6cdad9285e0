"""What faults interrupt: an action in a folder, and how to tell the old from the new there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Action = Callable[[Path], object]
OLD, NEW, NOTHING = "old", "new", "nothing"


@dataclass(frozen=True)
class Scenario:
    """An action whose every call may fail.

    prepare: fills a folder with what is there before.
    start: in the process that forks, returns the action; imports what it needs.
    state: OLD, NEW or NOTHING; raises an error for anything else, such as a mixture.
    allowed: the states after a fault, besides NEW.
    """

    prepare: Action
    start: Callable[[], Action]
    state: Callable[[Path], str]
    allowed: tuple[str, ...] = (OLD,)


def empty(folder: Path) -> None:
    """Prepare nothing: an action that writes something for the first time."""
