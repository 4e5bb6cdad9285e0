"""Ctrl-C and SIGTERM end a command within a second, with exit status 130 or 143.

The main thread gets GRACE seconds to unwind through every `finally`. It may need longer: Python
handles a signal only when a call into a library has returned, libraries catch exceptions, and an
exception in a weak reference's callback or a `__del__` is dropped. Therefore a thread waits for the
signals too. It cancels the calls into engines, and when the time is over, or at a second signal, it
does what engines.exit_actions has registered and ends the process.

On Windows, where this is not tested, there is no SIGTERM to handle.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from sdexport.engines.exit_actions import CANCEL, UNDO

GRACE = 0.3
"""Seconds in which a command unwinds after a signal, before it is ended."""
_CLEANING = 0.25
"""Seconds for deleting temporary files; what is left then is deleted by the next run."""
_DELAY = 0.05
"""Seconds before a dropped signal is raised again; by then the callback that dropped it is over."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(KeyboardInterrupt):
    """Ctrl-C as a class of its own.

    Where exactly KeyboardInterrupt passes through `exec` of a string, which dataclasses and PyTorch
    use a lot, Python ends the process by the signal, even if the exception is caught later.
    """


@contextmanager
def handled() -> Iterator[None]:
    """Handle both signals in a block; after a signal the process ends with the block.

    Nothing is done outside of the main thread, in a block in another such block, and for a SIGINT
    that is ignored or handled already.
    """
    if threading.current_thread() is not threading.main_thread() or _Handling.current is not None:
        yield
        return
    handling = _Handling()
    try:
        yield
    finally:
        handling.stop()


@contextmanager
def handled_by_block() -> Iterator[None]:
    """Leave both signals to a block that ends by itself, such as a server."""
    handling = _Handling.current
    if handling is None:
        yield
        return
    handling.pause()
    try:
        yield
    finally:
        handling.resume()


def raise_signal(number: int) -> NoReturn:
    """End the command as the signal would have, after a block that has handled it.

    Raises: Interrupt: for Ctrl-C. SystemExit: for SIGTERM, with its status.
    """
    if number == signal.SIGINT:
        raise Interrupt
    sys.exit(128 + number)


def exit_status(error: BaseException) -> int | None:
    """130 or 143 if a signal caused the error, directly or in a `finally` that failed after it.

    Returns: None for every other error.
    """
    if _Handling.current is not None and _Handling.current.number is not None:
        return 128 + _Handling.current.number
    cause: BaseException | None = error
    while cause is not None:
        number = _signal_of(cause)
        if number is not None:
            return 128 + number
        cause = cause.__context__
    return None


class _Handling:
    """The handlers of both signals, and the thread that ends the process if they do not.

    number: the signal that arrived first.
    """

    current: _Handling | None = None

    def __init__(self) -> None:
        self.number: int | None = None
        self._calls = self._resent = 0
        self._ending = threading.Lock()
        defaults = (signal.default_int_handler, signal.SIG_DFL)
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._before = {number: old for number, old in before.items() if old in defaults}
        self._hook = sys.unraisablehook
        self._reader, self._writer = socket.socketpair()  # which Windows can wait for too
        self._writer.setblocking(False)
        _Handling.current = self
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="interrupts", daemon=True).start()
        for number in self._before:
            signal.signal(number, self._raise)
        if self._hook is sys.__unraisablehook__:
            sys.unraisablehook = self._unraisable

    def stop(self) -> None:
        """End the process if a signal has arrived, else handle signals as before."""
        for number, old in self._before.items():
            signal.signal(number, old)
        if self.number is not None:
            self._end(self.number)
        signal.set_wakeup_fd(self._wakeup)
        sys.unraisablehook = self._hook
        _Handling.current = None
        self._writer.close()  # which ends the thread

    def pause(self) -> None:
        """Let the handlers of both signals be set by others."""
        signal.set_wakeup_fd(self._wakeup)
        for number, old in self._before.items():
            signal.signal(number, old)

    def resume(self) -> None:
        """Handle both signals again."""
        for number in self._before:
            signal.signal(number, self._raise)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        """Let the main thread unwind; a second signal does not disturb that."""
        self.number = self.number or number
        self._calls += 1
        if self._calls <= 1 + self._resent:
            raise_signal(number)

    def _unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Raise a signal again if its exception was dropped, as in a weak reference's callback."""
        number = _signal_of(unraisable.exc_value)
        if number is None:
            sys.__unraisablehook__(unraisable)
            return
        self._resent += 1
        timer = threading.Timer(_DELAY, _thread.interrupt_main, (number,))
        timer.daemon = True
        timer.start()

    def _watch(self) -> None:
        """Wait for a signal, give the main thread its time, and end the process."""
        with self._reader:
            first = next(self._signals(None), None)
            if first is None:
                return
            self.number = self.number or first
            CANCEL.run()
            for count, _ in enumerate(self._signals(GRACE), start=2):
                if count > 1 + self._resent:
                    break
            self._end(self.number)

    def _signals(self, seconds: float | None) -> Iterator[int]:
        """The signals that arrive, until the time is over or `stop` was called."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            self._reader.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))
            try:
                received = self._reader.recv(1)
            except TimeoutError:
                return
            if not received:
                return
            if received[0] in self._before:
                yield received[0]

    def _end(self, number: int) -> NoReturn:
        """Do what is registered, then end the process; only the first caller does."""
        if self._ending.acquire(blocking=False):
            cleaning = threading.Thread(target=_clean, daemon=True)
            cleaning.start()
            cleaning.join(_CLEANING)
            os._exit(128 + number)
        while True:
            time.sleep(_CLEANING)


def _clean() -> None:
    UNDO.run()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def _in_forked_child() -> None:
    """A signal of the child is not one of the parent, whose socket it has inherited."""
    if _Handling.current is not None:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


def _signal_of(error: BaseException | None) -> int | None:
    """The signal that raised an exception."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    terminated = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return signal.SIGTERM if terminated else None
