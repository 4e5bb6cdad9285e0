"""Errors as the clients of each API expect them, and nothing of the server's inside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sdexport.engines.errors import InvalidArgumentError, OutOfMemoryError
from sdexport.engines.messages import one_line
from sdexport.server.server_errors import QueueFullError, ServerError

_log = logging.getLogger(__name__)
Body = Callable[[int, str, str], Mapping[str, Any]]
"""(status, type, message) -> the body of an API's error."""
_KINDS = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    429: "queue_full",
    431: "too_large",
    503: "unavailable",
}


def native_body(status: int, kind: str, message: str) -> dict[str, Any]:
    """The body of an error of the native API."""
    return {"error": {"type": kind, "message": message}}


def kind_of(error: Exception) -> str:
    """The type of an error in the native API."""
    if isinstance(error, ServerError):
        return error.kind
    return "out_of_memory" if isinstance(error, OutOfMemoryError) else "invalid_request"


class ErrorBodies:
    """The shape of errors, by the path of a request.

    Args:
      shapes: beginning of a path -> shape; the longest one that fits counts.
    """

    def __init__(self, shapes: Mapping[str, Body]) -> None:
        self._shapes = sorted(shapes.items(), key=lambda item: -len(item[0]))

    def body(self, path: str, status: int, message: str, kind: str = "") -> Mapping[str, Any]:
        """The body of an error."""
        shape = next((s for start, s in self._shapes if path.startswith(start)), native_body)
        return shape(status, kind or _KINDS.get(status, "server_error"), message)

    def response(
        self,
        path: str,
        status: int,
        message: str,
        kind: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> JSONResponse:
        """The response of an error."""
        body = self.body(path, status, message, kind)
        return JSONResponse(body, status, dict(headers or {}))

    def of(self, path: str, error: Exception) -> JSONResponse:
        """The response for an exception; one that is no error of ours is logged as a bug."""
        if isinstance(error, ServerError):
            retry = (
                {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFullError) else {}
            )
            return self.response(path, error.status, str(error), error.kind, retry)
        if isinstance(error, InvalidArgumentError):
            return self.response(path, 400, one_line(error), kind_of(error))
        if isinstance(error, OutOfMemoryError):
            return self.response(path, 507, one_line(error), kind_of(error))
        _log.error("this is a bug in sdexport: %s", one_line(error, 1000), exc_info=error)
        return self.response(path, 500, "internal error; the server's log has the details")

    def install(self, app: FastAPI) -> None:
        """Let an application answer with these for every exception."""

        async def known(request: Request, error: Exception) -> JSONResponse:
            return self.of(request.url.path, error)

        async def invalid(request: Request, error: Exception) -> JSONResponse:
            assert isinstance(error, RequestValidationError)
            return self.response(request.url.path, 400, _validation_message(error))

        async def http(request: Request, error: Exception) -> JSONResponse:
            assert isinstance(error, HTTPException)
            headers = error.headers
            return self.response(
                request.url.path, error.status_code, str(error.detail), headers=headers
            )

        for kind in (ServerError, InvalidArgumentError, OutOfMemoryError):
            app.add_exception_handler(kind, known)
        app.add_exception_handler(RequestValidationError, invalid)
        app.add_exception_handler(HTTPException, http)


def _validation_message(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request, in one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
    text = one_line(str(first.get("msg", "invalid")), 300)
    return f"{one_line(place, 200)}: {text}" if place else text
