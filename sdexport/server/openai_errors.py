"""Errors in the form of OpenAI's API, of which the `openai` package makes exceptions."""

from __future__ import annotations

import re
from typing import Any

from sdexport.server.openai_fields import FIELDS

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_FIELD = re.compile(r"\w+")


def error_body(status: int, kind: str, message: str) -> dict[str, Any]:
    """The body of an error; `param` is the field that the message begins with, if it is one."""
    type_ = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    about = _FIELD.match(message)
    parameter = about[0] if about and about[0] in FIELDS else None
    code = _CODES.get(status, None if status == 400 else kind)
    return {"error": {"message": message, "type": type_, "param": parameter, "code": code}}
