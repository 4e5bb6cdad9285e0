"""The server's own API: jobs with every setting of the library, and what happens to them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from sdexport.engines.errors import InvalidArgumentError
from sdexport.server.error_bodies import kind_of, native_body
from sdexport.server.event_clients import EventClients, EventTexts
from sdexport.server.image_request import ImageRequest
from sdexport.server.image_service import ImageService
from sdexport.server.input_images import RequestImages, decoded_images, in_decoding_thread
from sdexport.server.job_request import JobRequest
from sdexport.server.job_state import ErrorBody, JobState
from sdexport.server.jobs import CANCELLED, DONE, FAILED, STEP, Job, JobEvent
from sdexport.server.json_requests import JsonRoute
from sdexport.server.output_images import MEDIA_TYPES, encoded_image, preview_url
from sdexport.server.registered_names import ADAPTERS
from sdexport.server.request_context import REQUEST_ID
from sdexport.server.route_documents import Responses, error_responses
from sdexport.server.server_errors import JobNotFoundError, ServerError

HEARTBEAT = 15.0
"""Seconds after which an event stream without events sends a comment."""
_IMAGES = {"image", "mask_image"}
_IMAGES_OF_ITEMS = {"image", "images", "masks"}


_ERRORS = error_responses(
    {
        400: "A setting that is unknown, out of range or beyond a limit",
        404: "There is no such job or image",
    },
    ErrorBody,
)
_STATE: Responses = {200: {"model": JobState}}


def router(service: ImageService) -> APIRouter:
    """The routes of this API."""
    routes = APIRouter(prefix="/v1", tags=["Jobs"], route_class=JsonRoute, responses=_ERRORS)
    clients = EventClients(service)
    texts = EventTexts(partial(_text, service))

    @routes.get("/server")
    async def server() -> dict[str, Any]:
        """The models, schedulers, LoRAs, adapters and limits of the server."""
        return await anyio.to_thread.run_sync(service.describe)

    @routes.post("/jobs", status_code=202, responses={202: {"model": JobState}})
    async def post_job(body: JobRequest) -> dict[str, Any]:
        """Submit a job; it waits until its turn."""
        service.queue.check_room()  # before images are decoded
        with service.request_images() as images:
            arguments = await with_images(service, body.arguments(), images)
            request = ImageRequest(body.model, arguments, body.timeout)
            job = service.submit(request, previews=body.previews, request_id=REQUEST_ID.get())
            images.keep_for(job)
        job.unfetched.update(range(job.count))
        return describe_job(service, job)

    @routes.get("/jobs/{job_id}", responses=_STATE)
    async def get_job(job_id: str) -> dict[str, Any]:
        """The state of a job; when it is done, the addresses and settings of its images."""
        return describe_job(service, service.job(job_id))

    @routes.get(
        "/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def get_events(job_id: str) -> StreamingResponse:
        """Server-sent events: status, step (with a preview), and done, failed or cancelled.

        A client that closes the stream before the end cancels the job, unless it opens another one
        within some seconds.
        """
        job = service.job(job_id)
        return StreamingResponse(
            clients.during(job, _stream(service, job, texts)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @routes.get(
        "/jobs/{job_id}/images/{index}",
        response_class=Response,
        responses={200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}}},
    )
    async def get_image(
        job_id: str,
        index: int,
        format: str = "png",  # noqa: A002
        quality: int | None = None,
    ) -> Response:
        """An image of a job as a file that carries its settings: png, jpeg or webp."""
        job = service.job(job_id)
        if job.status != DONE or not 0 <= index < len(job.images):
            raise JobNotFoundError(f"the job has no image {index}; it is {job.status}")
        if format not in MEDIA_TYPES:
            raise InvalidArgumentError(f"format must be one of {', '.join(MEDIA_TYPES)}")
        content = await anyio.to_thread.run_sync(encoded_image, job.images[index], format, quality)
        job.unfetched.discard(index)
        return Response(content, media_type=MEDIA_TYPES[format], headers=_KEEP)

    @routes.delete("/jobs/{job_id}", responses=_STATE)
    async def delete_job(job_id: str) -> dict[str, Any]:
        """Cancel a job, which frees its place in the queue, or the engine if it runs alone."""
        return describe_job(service, service.cancel(job_id))

    return routes


_KEEP = {"Cache-Control": "private, max-age=600, immutable"}


def describe_job(service: ImageService, job: Job) -> dict[str, Any]:
    """A job as JSON can hold it."""
    found: dict[str, Any] = {
        "id": job.id,
        "status": job.status,
        "url": f"/v1/jobs/{job.id}",
        "model": job.request.model,
        "count": job.count,
        "step": job.step,
        "steps": job.steps,
    }
    position = service.queue.position(job)
    if position is not None:
        found["position"] = position
    if job.status == DONE:
        found |= _done(service, job)
    elif job.error is not None:
        found |= error_of(service, job)
    return found


def error_of(service: ImageService, job: Job) -> dict[str, Any]:
    """The error of a job that failed or was cancelled."""
    error = service.public(job.error or ServerError("unknown"))
    return native_body(400, kind_of(error), str(error))


def _done(service: ImageService, job: Job) -> dict[str, Any]:
    """The images of a job that is done, and what the library warned of."""
    found: dict[str, Any] = {"images": _images(job), "seconds": dict(job.seconds)}
    if job.warnings:
        found["warnings"] = [service.public_text(text) for text in job.warnings]
    return found


def _images(job: Job) -> list[dict[str, Any]]:
    flagged: Sequence[bool | None] = job.flagged or [None] * len(job.images)
    return [
        {
            "url": f"/v1/jobs/{job.id}/images/{index}",
            "parameters": parameters.to_dict(),
            **({} if flagged[index] is None else {"nsfw_content_detected": flagged[index]}),
        }
        for index, parameters in enumerate(job.parameters)
    ]


async def with_images(
    service: ImageService, arguments: Mapping[str, Any], images: RequestImages
) -> dict[str, Any]:
    """The arguments with Pillow images in place of texts.

    Args:
      images: decodes them.
    Raises: InvalidArgumentError: an image that cannot be read; an adapter that is unknown, or too
      many. QueueFullError: see RequestImages.read.
    """
    found = dict(arguments)
    for argument in ADAPTERS:
        service.names.check_adapters(argument, found.get(argument) or ())
    for name in _IMAGES & found.keys():
        if found[name] is not None:
            found[name] = await in_decoding_thread(decoded_images, found[name], name, images)
    for argument in ADAPTERS:
        for item in found.get(argument) or ():
            for name in _IMAGES_OF_ITEMS & item.keys():
                if item[name] is not None:
                    what = f"{argument}: {name}"
                    item[name] = await in_decoding_thread(decoded_images, item[name], what, images)
    return found


async def _stream(service: ImageService, job: Job, texts: EventTexts) -> AsyncGenerator[str]:
    """The events of a job as text, and a comment now and then while there are none."""
    iterator = service.events(job)
    pending: asyncio.Future[JobEvent] = asyncio.ensure_future(anext(iterator))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=HEARTBEAT)
            if not done:
                yield ": waiting\n\n"
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            yield await texts.of(job, event)
            pending = asyncio.ensure_future(anext(iterator))
    finally:
        pending.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration):
            await pending
        await iterator.aclose()


async def _text(service: ImageService, job: Job, event: JobEvent) -> str:
    data: dict[str, Any]
    if event.kind == STEP:
        data = {
            "step": event.step,
            "steps": event.steps,
            "timestep": event.timestep if math.isfinite(event.timestep or 0.0) else None,
            "seconds": round(event.seconds, 4),
        }
        if event.preview is not None:
            data["preview"] = await anyio.to_thread.run_sync(preview_url, event.preview)
    elif event.kind == DONE:
        data = _done(service, job)
    elif event.kind in (FAILED, CANCELLED):
        data = error_of(service, job)
    else:
        data = {"id": job.id, "status": job.status}
        position = service.queue.position(job)
        if position is not None:
            data["position"] = position
    return f"event: {event.kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
