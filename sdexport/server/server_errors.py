"""What a request to the server can fail with, besides an argument that is out of range."""

from __future__ import annotations

from sdexport.engines.errors import SDExportError


class ServerError(SDExportError):
    """The server cannot do what was requested; `status` is the HTTP status."""

    status = 500
    kind = "server_error"


class QueueFullError(ServerError):
    """As many jobs wait as may wait; `retry_after` seconds later there may be room."""

    status = 429
    kind = "queue_full"

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(f"{reason}; try again in {retry_after} s")
        self.retry_after = retry_after


class ShuttingDownError(ServerError):
    """The server takes no more jobs."""

    status = 503
    kind = "shutting_down"

    def __init__(self) -> None:
        super().__init__("the server is shutting down and takes no more jobs")


class JobNotFoundError(ServerError):
    """There is no such job, or it ended too long ago."""

    status = 404
    kind = "not_found"


class JobCancelledError(ServerError):
    """The job was cancelled before it was done."""

    status = 409
    kind = "cancelled"


class DeadlineError(ServerError):
    """The job was not done in time."""

    status = 504
    kind = "deadline_exceeded"


class ModelFailedError(ServerError):
    """Generating failed for a reason that is not the request's; the log has the details.

    reason: the name of the error, for metrics.
    """

    kind = "engine_error"
    reason = ""
