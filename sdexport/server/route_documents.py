"""What the OpenAPI document says of routes that read their bodies themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]
_OF_THE_GUARD = {
    401: "The key is missing or wrong",
    403: "The Host or Origin is not allowed",
    408: "The body did not arrive in time",
    413: "The body is too large",
}
_OF_THE_QUEUE = {
    405: "The method is not allowed",
    429: "The queue is full; see Retry-After",
    503: "The server is shutting down, or too busy",
}


def error_responses(
    texts: Mapping[int, str], model: type[BaseModel] | None = None, *, queued: bool = True
) -> Responses:
    """Status -> what the document says of it: what the server's checks answer, and `texts`.

    Args:
      model: of the body.
      queued: whether the routes need the queue.
    """
    known = {**_OF_THE_GUARD, **(_OF_THE_QUEUE if queued else {}), **texts}
    body = {"model": model} if model else {}
    return {status: {**body, "description": known[status]} for status in sorted(known)}


ERRORS = error_responses(
    {
        400: "A field or value that is unknown, not supported or beyond a limit",
        404: "There is no such model",
        409: "The job was cancelled",
        500: "Generating failed; the server's log has the details",
        501: "Not supported by this server",
        504: "The job was not done in time",
        507: "The memory does not suffice",
    }
)
"""For the routes of APIs that answer with images."""


def body_document(
    example: Mapping[str, Any],
    media_type: str = "application/json",
    *,
    files: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The document's part about a body that is an object.

    Args:
      example: of a body. files: fields that are files.
    """
    properties = {name: {"type": "string", "format": "binary"} for name in files}
    schema: dict[str, Any] = {"type": "object", "properties": properties} if files else {}
    content = {media_type: {"schema": schema or {"type": "object"}, "example": dict(example)}}
    return {"requestBody": {"content": content, "required": True}}
