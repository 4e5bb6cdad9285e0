"""Ctrl-C and SIGTERM end a command through every `finally`, with exit status 130 or 143.

Python alone does not guarantee that: it drops exceptions raised in weak reference callbacks and
`__del__`, an exception raised in a `finally` hides the interruption, and a KeyboardInterrupt that
passes through `exec` of a string ends the process by the signal even if it is caught later.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from types import FrameType

_DELAY = 0.05
"""Seconds before a dropped signal is sent again; by then the callback that dropped it is over."""


class Interrupt(KeyboardInterrupt):
    """Ctrl-C as a class of its own.

    Where exactly KeyboardInterrupt passes through `exec` of a string, which dataclasses and PyTorch
    use a lot, Python ends the process by the signal, even if the exception is caught later.
    """


def install() -> None:
    """Handle both signals in the main thread; a SIGINT that is ignored stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _send_again


def exit_status(error: BaseException) -> int | None:
    """130 or 143 if a signal caused the error, directly or in a `finally` that failed after it.

    Returns: None for every other error.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = _signal_of(cause)
        if number is not None:
            return 128 + number
        cause = cause.__context__
    return None


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _signal_of(error: BaseException | None) -> int | None:
    """The signal that raised an exception."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    terminated = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return signal.SIGTERM if terminated else None


def _send_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a signal again if its exception was dropped, as in a weak reference's callback."""
    number = _signal_of(unraisable.exc_value)
    if number is None:
        sys.__unraisablehook__(unraisable)
        return
    timer = threading.Timer(_DELAY, _thread.interrupt_main, (number,))
    timer.daemon = True
    timer.start()
