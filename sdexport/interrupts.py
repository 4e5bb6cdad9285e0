"""Ctrl-C and SIGTERM end a command by way of every `finally`, wherever they fall."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from types import FrameType

_PAUSE = 0.05  # seconds, after which what swallowed the exception is over


class Interrupt(KeyboardInterrupt):
    """Ctrl-C, as a class of its own: where a KeyboardInterrupt passes through exec of a string, of
    which dataclasses and PyTorch have many, Python ends by the signal, though it was caught."""


def install() -> None:
    """Handle both signals in the main thread; a SIGINT that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _again


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def behind(error: BaseException) -> BaseException | None:
    """The interruption that an error came in the wake of, if any: a `finally` may fail of it."""
    context: BaseException | None = error
    while context is not None and not _number(context):
        context = context.__context__
    return context


def _number(error: BaseException | None) -> int | None:
    """The signal that an exception came of."""
    if isinstance(error, Interrupt):
        return signal.SIGINT
    terminated = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return signal.SIGTERM if terminated else None


def _again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send once more what fell where Python lets nothing out, such as a weak reference's end."""
    number = _number(unraisable.exc_value)
    if number is None:
        sys.__unraisablehook__(unraisable)
        return
    timer = threading.Timer(_PAUSE, _thread.interrupt_main, (number,))
    timer.daemon = True
    timer.start()
