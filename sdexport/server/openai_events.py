"""The events of an image request with `stream`: previews, then the images.

Source: the types of image stream events in the `openai` package 3.57.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from sdexport.engines.errors import OutOfMemoryError, SDExportError
from sdexport.server.disconnects import items_unless_disconnected
from sdexport.server.image_service import ImageService
from sdexport.server.jobs import STEP, Job, JobEvent
from sdexport.server.openai_errors import error_body
from sdexport.server.openai_fields import ImageFields
from sdexport.server.openai_images import NO_TOKENS, encoded, size_text
from sdexport.server.previews import full_size
from sdexport.server.server_errors import ServerError


async def listening(events: AsyncIterator[JobEvent]) -> AsyncIterator[JobEvent]:
    """The events of a job, which are kept from now on and not only once they are read."""
    first = await anext(events)

    async def all_events() -> AsyncIterator[JobEvent]:
        yield first
        async for event in events:
            yield event

    return all_events()


async def event_stream(
    service: ImageService,
    request: Request,
    job: Job,
    events: AsyncIterator[JobEvent],
    fields: ImageFields,
    kind: str,
) -> AsyncIterator[str]:
    """The events of a job as text; the job is cancelled if the client goes away.

    Args:
      events: of the job. kind: "image_generation" or "image_edit".
    """
    sent = 0
    try:
        async for event in items_unless_disconnected(request, events):
            if _is_due(event, sent, fields.partial_images):
                yield await _partial(job, event, fields, kind, sent)
                sent += 1
        await service.result(job)
        for text, image in zip(await encoded(job.images, fields), job.images, strict=True):
            values = _common(fields, image.size) | {"b64_json": text, "usage": NO_TOKENS}
            if fields.user:
                values["safety_identifier"] = fields.user
            yield _event(f"{kind}.completed", values)
    except SDExportError as error:
        yield _error(error)
    finally:
        if not job.is_over:
            service.queue.cancel(job, "the client closed the stream of events")


def _is_due(event: JobEvent, sent: int, wanted: int) -> bool:
    """Whether the next preview is sent; they are spread over the steps before the last one."""
    if event.kind != STEP or event.preview is None or sent >= wanted or event.step >= event.steps:
        return False
    return event.step * (wanted + 1) >= event.steps * (sent + 1)


async def _partial(job: Job, event: JobEvent, fields: ImageFields, kind: str, index: int) -> str:
    assert event.preview is not None
    preview = full_size(job, event.preview)
    (text,) = await encoded([preview], fields)
    values = {"b64_json": text, "partial_image_index": index}
    return _event(f"{kind}.partial_image", _common(fields, preview.size) | values)


def _common(fields: ImageFields, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": fields.output_format,
        "quality": "auto",
        "size": size_text(size),
    }


def _event(kind: str, values: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n"


def _error(error: SDExportError) -> str:
    status, kind = 400, "invalid_request"
    if isinstance(error, ServerError):
        status, kind = error.status, error.kind
    elif isinstance(error, OutOfMemoryError):
        status, kind = 507, "out_of_memory"
    return _event("error", error_body(status, kind, str(error)))
