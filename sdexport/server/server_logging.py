"""The log of a server: lines of text, or of JSON, with the id of the request."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from sdexport.engines.printable_text import escaped
from sdexport.server.request_context import REQUEST_ID

FORMATS = ("text", "json")
_OURS = ("status", "path", "seconds", "job", "model")


class _WithRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = getattr(record, "request_id", "") or REQUEST_ID.get() or "-"
        return True


class TextFormatter(logging.Formatter):
    """Time, level, id of the request, and message on one line; a traceback on further ones."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(request_id)s] %(message)s")
        self.converter = time.gmtime
        self.default_time_format, self.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.exc_info or record.stack_info:
            return escaped(text, "\n")
        return escaped(" ".join(text.split()))


class JsonFormatter(logging.Formatter):
    """One JSON object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
        }
        entry |= {name: getattr(record, name) for name in _OURS if hasattr(record, name)}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def set_up_server_logging(form: str, level: int) -> None:
    """Write every log record of the process to stderr in one form.

    Args:
      form: "text" or "json".
      level: of what is written; of libraries at most warnings are.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(_WithRequestId())
    handler.setLevel(level)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    level = min(level, logging.WARNING)  # the clients are told of warnings
    logging.getLogger("sdexport").setLevel(level)
    logging.getLogger("sdexport.runtime").setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True  # the guard logs requests
