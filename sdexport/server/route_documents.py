"""What the OpenAPI document says of routes that read their bodies themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {
    status: {"description": text}
    for status, text in {
        400: "A field or value that is unknown, not supported or beyond a limit",
        401: "The key is missing or wrong",
        403: "The Host or Origin is not allowed",
        404: "There is no such model",
        405: "The method is not allowed",
        408: "The body did not arrive in time",
        409: "The job was cancelled",
        413: "The body is too large",
        429: "The queue is full; see Retry-After",
        500: "Generating failed; the server's log has the details",
        501: "Not supported by this server",
        503: "The server is shutting down, or too busy",
        504: "The job was not done in time",
        507: "The memory does not suffice",
    }.items()
}
"""Status -> what the document says of it; for the routes of an API."""


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
