"""What has to be done when a command ends before its `finally` blocks have run.

Python handles a signal only between two of its own instructions, and a call into a library may
take minutes. The command line therefore ends the process itself if it must (sdexport.interrupts).
Whoever makes temporary files, starts a process or changes the terminal registers here how to undo
that, and whoever calls an engine how to cancel the call. A program that uses the library without
the command line never runs these functions; the server runs those that cancel the calls of a job.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Action = Callable[[], object]
_ATTEMPTS, _PAUSE = 5, 0.02
"""How often a folder is deleted while other threads create files in it, and seconds in between."""


class Actions:
    """Functions that are registered while a block runs; safe to use from several threads."""

    def __init__(self) -> None:
        self._actions: dict[object, tuple[int, Action]] = {}
        self._lock = threading.Lock()

    def add(self, action: Action) -> Action:
        """Register a function, and return the one that removes it; removing twice is allowed."""
        key = object()
        with self._lock:
            self._actions[key] = threading.get_ident(), action

        def remove() -> None:
            with self._lock:
                self._actions.pop(key, None)

        return remove

    @contextmanager
    def during(self, action: Action) -> Iterator[None]:
        """Register a function for a block."""
        remove = self.add(action)
        try:
            yield
        finally:
            remove()

    def run(self, thread: int | None = None) -> None:
        """Call all functions, the newest first; errors of one do not keep back the others.

        Args:
          thread: only those that the thread of this identifier has registered.
        """
        with self._lock:
            actions = list(self._actions.values())
        for owner, action in reversed(actions):
            if thread in (None, owner):
                with suppress(Exception):
                    action()


UNDO = Actions()
"""Delete temporary files, end processes, restore the terminal."""
CANCEL = Actions()
"""Cancel calls that are running in an engine; each then fails with an EngineError."""


def delete(path: Path) -> None:
    """Delete a temporary file or folder, also while other threads write to it; no error is raised.

    A link is deleted itself, not what it leads to.
    """
    import shutil  # seldom needed

    for _ in range(_ATTEMPTS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        if not os.path.lexists(path):
            return
        time.sleep(_PAUSE)
