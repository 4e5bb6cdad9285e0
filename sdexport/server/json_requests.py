"""JSON bodies of requests: strictly JSON, not too deep, and not too many values."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from sdexport.engines.json_text import parse_json
from sdexport.engines.messages import one_line

MAX_DEPTH = 16
MAX_ENTRIES = 100_000


_LONG = 200_000
"""Bytes of a body that takes longer to read than a switch to a thread."""


class JsonRequest(Request):
    """A request whose `json` is checked."""

    async def json(self) -> Any:
        """The value of the body.

        Raises: HTTPException: it is not JSON, too deeply nested or has too many values.
        """
        if not hasattr(self, "_json"):
            try:
                body = await self.body()
                if len(body) > _LONG:  # other requests are answered meanwhile
                    self._json = await anyio.to_thread.run_sync(_parsed, body)
                else:
                    self._json = _parsed(body)
            except RecursionError:
                raise HTTPException(400, "the body's JSON is nested too deeply") from None
            except ValueError as error:  # also bytes that are no UTF-8, and huge integers
                raise HTTPException(
                    400, f"the body cannot be read as JSON: {one_line(error, 200)}"
                ) from error
        return self._json


class JsonRoute(APIRoute):
    """A route whose requests are JsonRequests; the `route_class` of every API's router."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return checked


def _parsed(body: bytes) -> Any:
    value = parse_json(body.decode("utf-8"), strict=True)
    _check_extent(value)
    return value


def _check_extent(value: Any) -> None:
    """Raises: ValueError: nested too deeply, too many values, or text that is not Unicode."""
    level, entries = [value], 0
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
                _check_text("".join(each))
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str):
                _check_text(each)
        entries += len(inner)
        if entries > MAX_ENTRIES:
            raise ValueError(f"it has more than {MAX_ENTRIES:,} values")
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def _check_text(text: str) -> None:
    """Raises: ValueError: half of a surrogate pair, which no response can repeat."""
    if not text.isascii():
        text.encode()
