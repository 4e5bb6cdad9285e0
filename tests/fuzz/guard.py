"""What code under test may not do while it reads an input: checked with an audit hook.

It may open files of the input's folder for reading, and Python's own modules. It may not open
others, write, delete or rename, use the network, start a program or load a pickle. What native
libraries open by themselves raises no audit event, so it is not seen.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_SYSTEM = re.compile(r"/proc/((self|\d+)/(maps|statm?|status|cgroup)|\w+)|/sys/.*|/dev/null")
"""What is read about the machine."""
_FORBIDDEN = (
    *("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork"),
    *("os.startfile", "pty.spawn", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser."),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.chdir", "os.putenv", "shutil.", "tempfile.", "pickle."),
)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class ForbiddenError(BaseException):
    """Raised at once where code does what it may not do; no handler of errors takes it."""


class Guard:
    """The audit hook of this process; it is idle outside of `watching`."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._folder: str | None = None
        self._code = tuple(
            f"{Path(path).resolve()}{os.sep}"
            for path in {sys.prefix, sys.base_prefix, *(p for p in sys.path if "site-pack" in p)}
        )
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """Record and stop what may not be done; `problems` has it afterwards."""
        self.problems, writes = [], sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # of modules that are imported meanwhile
        self._folder = os.path.realpath(folder)
        try:
            yield
        finally:
            self._folder = None
            sys.dont_write_bytecode = writes

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        folder = self._folder
        if folder is None or (event != "open" and not event.startswith(_FORBIDDEN)):
            return
        self._folder = None  # what the check itself does is not checked
        try:
            problem = self._wrong(folder, event, arguments)
        finally:
            self._folder = folder
        if problem:
            self.problems.append(problem)
            raise ForbiddenError(problem)

    def _wrong(self, folder: str, event: str, arguments: tuple[Any, ...]) -> str:
        if event != "open":
            return f"{event} {str(arguments)[:200]}"
        path, mode, flags = arguments
        if isinstance(path, int):  # an open descriptor
            return ""
        if mode is None and flags & _NO_LINK and _is_plain_name(os.fsdecode(path)):
            return ""  # in a folder that is open, whose path was checked
        name = os.path.realpath(os.fsdecode(path))
        if isinstance(flags, int) and flags & _WRITES and name != "/dev/null":
            return f"opens {name} for writing"
        if name == folder or name.startswith(folder + os.sep) or _SYSTEM.fullmatch(name):
            return ""
        is_code = name.endswith((".py", ".pyc", ".so", ".pyd"))
        if name.startswith(self._code) or (is_code and name.startswith(str(_ROOT))):
            return ""
        return f"opens {name}, outside of the folder"


def _is_plain_name(name: str) -> bool:
    return name != ".." and os.sep not in name
