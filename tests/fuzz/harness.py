"""One input through one target: what is asserted, and how a failure is described.

Asserted of every input: it ends in success or a documented error; the message is one line without
control characters that names the file or argument; log messages likewise; no Python warning; less
than FUZZ_SECONDS of processor time; less than FUZZ_BYTES of memory; and what guard.py checks.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import random
import sys
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdexport.engines.errors import SDExportError
from tests.fuzz import mutators
from tests.fuzz.guard import ForbiddenError, Guard
from tests.fuzz.memory import PeakMemory
from tests.tolerances import FUZZ_BYTES, FUZZ_SECONDS

_ROOT = Path(__file__).parents[2]
_LONGEST = 2_000
"""Characters of a message."""
_CONTROL = {"Cc", "Zl", "Zp", "Cs"}
"""Unicode categories: control characters, line and paragraph separators, lone surrogates."""
_BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _nothing(*_: object) -> None:
    """What a target does that needs no files."""


@dataclass(frozen=True)
class Target:
    """A function that reads untrusted data.

    Attributes:
      name: also of its folder in tests/fuzz/corpus.
      run: reads the input; the first argument is the folder with its files.
      names: a message has at least one of these words, so that a user knows what is wrong.
      prepare: writes what all inputs need into the empty folder, once.
      write: writes the files of one input.
      mutate: makes a similar input.
      errors: the documented ones.
      longest: bytes of an input.
      needs: a package that may not be installed.
      random_inputs: how many are tried in the suite.
    """

    name: str
    run: Callable[[Path, bytes], object]
    names: tuple[str, ...]
    prepare: Callable[[Path], object] = _nothing
    write: Callable[[Path, bytes], object] = _nothing
    mutate: Callable[[bytes, random.Random], bytes] = mutators.binary
    errors: tuple[type[Exception], ...] = (SDExportError, OSError)
    longest: int = 4096
    needs: str | None = None
    random_inputs: int = 100


@dataclass(frozen=True)
class Finding:
    """What went wrong with an input. signature: the same for inputs that fail in the same way."""

    kind: str
    detail: str
    where: str
    data: bytes

    @property
    def signature(self) -> str:
        """Kind and place, for comparing findings."""
        return f"{self.kind} at {self.where}" if self.where else self.kind

    @property
    def name(self) -> str:
        """A file name for the input."""
        return hashlib.sha256(self.data).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.signature}: {self.detail[:500]}"


class Checker:
    """Runs inputs of one target in a folder, and says what is wrong with each.

    Args:
      slowness: how many times slower code runs here than without instrumentation.
    """

    def __init__(self, target: Target, folder: Path, *, slowness: float = 1) -> None:
        self.target = target
        self._folder = folder
        self._seconds = FUZZ_SECONDS * slowness
        self._memory = PeakMemory(FUZZ_BYTES)
        target.prepare(folder)

    def check(self, data: bytes) -> Finding | None:
        """Run one input; None if everything that is asserted holds."""
        finding, seconds = self._once(data)
        if finding is not None:
            return finding
        if seconds > self._seconds:  # once more: other programs disturb as well
            seconds = min(seconds, self._once(data)[1])
            if seconds > self._seconds:
                return Finding("slow", f"{seconds:.2f} s of processor time", "", data)
        if self._memory.exceeded():
            with self._memory.measured() as peak:
                self._once(data)
            if peak.bytes > FUZZ_BYTES:
                return Finding("memory", f"{peak.bytes >> 20} MiB more than before", "", data)
        return None

    def _once(self, data: bytes) -> tuple[Finding | None, float]:
        """What is wrong apart from time and memory, and seconds of processor time."""
        guard, messages = _guard(), []
        error: BaseException | None = None
        self.target.write(self._folder, data)
        begun = time.process_time()
        with _quiet(), _logged(messages), guard.watching(self._folder):
            try:
                self.target.run(self._folder, data)
            except (Exception, ForbiddenError) as raised:  # noqa: BLE001
                error = raised
        seconds = time.process_time() - begun
        if guard.problems:
            return Finding("forbidden", guard.problems[0], _place(error), data), seconds
        problem = self._wrong_error(error) or _wrong_message(messages)
        if problem:
            kind, detail = problem
            return Finding(kind, detail, _place(error), data), seconds
        return None, seconds

    def _wrong_error(self, error: BaseException | None) -> tuple[str, str] | None:
        if error is None:
            return None
        shown = f"{type(error).__name__}: {str(error)!r:.400}"
        if isinstance(error, MemoryError) or not isinstance(error, self.target.errors):
            return f"undocumented {type(error).__name__}", shown
        if _is_unfit(str(error), None if isinstance(error, OSError) else _LONGEST):
            return "unfit message", shown
        if not any(name in str(error) for name in self.target.names):
            return "message without a name", shown
        return None


_guards: list[Guard] = []


def _guard() -> Guard:
    """The guard of this process: an audit hook cannot be removed."""
    if not _guards:
        _guards.append(Guard())
    return _guards[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warnings are errors, and nothing is printed."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("error")
        yield


class _Handler(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


@contextlib.contextmanager
def _logged(messages: list[str]) -> Iterator[None]:
    """Collect what is logged as warnings and errors."""
    logger, handler = logging.getLogger("sdexport"), _Handler(messages)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _is_unfit(text: str, longest: int | None = _LONGEST) -> bool:
    """Whether a text is not one line of reasonable length without control characters.

    Args:
      longest: None for an error of the system, which quotes all of a path.
    """
    if not text or (longest is not None and len(text) > longest):
        return True
    return not text.isprintable() and any(
        unicodedata.category(char) in _CONTROL or char in _BIDI for char in text
    )


def _wrong_message(messages: list[str]) -> tuple[str, str] | None:
    unfit = [message for message in messages if _is_unfit(message)]
    return ("unfit log message", f"{unfit[0]!r:.400}") if unfit else None


def _place(error: BaseException | None) -> str:
    """The innermost line of this project that an error came through."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if _is_own(f.filename)] or list(frames)
    return f"{Path(own[-1].filename).name}:{own[-1].name}:{own[-1].lineno}" if own else ""


def _is_own(filename: str) -> bool:
    return filename.startswith(str(_ROOT)) and "site-packages" not in filename


def report(finding: Finding) -> None:
    """Write a finding to standard error."""
    sys.stderr.write(f"FINDING {finding}\n")
