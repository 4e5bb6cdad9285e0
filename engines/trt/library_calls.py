"""Calls of TensorRT's bindings: however one fails, it becomes an EngineError with the reason.

A failed constructor of the bindings raises TypeError. A failed method raises RuntimeError or
another exception, or returns None or False, which differs between versions. The reason is only in
what the library logs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sdexport.engines.errors import EngineError, engine_error
from sdexport.engines.messages import one_line

_log = logging.getLogger(__name__)


class LibraryCalls:
    """Calls of one of the two libraries for a component.

    Args:
      trt: its module. library: its name, as in messages. component: begins every message.
    Attributes:
      logger: to be passed to the library's constructors.
    """

    def __init__(self, trt: Any, library: str, component: str) -> None:
        self._name = f"{component}: {library}"
        self._errors: list[str] = []
        severity, errors = trt.ILogger.Severity, self._errors

        class Recorder(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, level: Any, message: str) -> None:
                try:
                    if level in (severity.INTERNAL_ERROR, severity.ERROR):
                        errors.append(one_line(message))
                    elif level == severity.WARNING:
                        _log.info("%s: %s", component, one_line(message))
                except Exception:  # noqa: BLE001  the library calls it from destructors too, where
                    pass  # an exception would end the process

        self.logger = Recorder()

    def value(self, failure: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that returns something.

        Args:
          failure: what it means if the call fails, such as "cannot load x.plan".
        Raises: EngineError: it raised an exception, or returned None or False.
        """
        result = self._called(failure, function, arguments)
        if result is None or result is False:
            raise self.error(failure)
        return result

    def done(self, failure: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function that returns nothing; see `value`.

        Raises: EngineError: it raised an exception, or the library logged an error.
        """
        self._called(failure, function, arguments)
        if self._errors:
            raise self.error(failure)

    def logged_errors(self) -> bool:
        """Whether the library logged an error during the last call."""
        return bool(self._errors)

    def error(self, failure: str, reason: str = "it gave no reason") -> EngineError:
        """The error for a call that failed: with what the library logged, otherwise `reason`."""
        text = "; ".join(dict.fromkeys(self._errors)) or reason
        self._errors.clear()
        return engine_error(f"{self._name} {failure}: {text}")

    def _called(
        self, failure: str, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> Any:
        self._errors.clear()
        try:
            return function(*arguments)
        except MemoryError:
            raise
        except Exception as error:
            raise self.error(failure, one_line(error)) from error
