"""OpenAI's images API, for its official clients and programs that use it.

Source: resources/images.py, resources/models.py and the types of the `openai` package 3.57.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import one_line, shown
from sdexport.server.disconnects import unless_disconnected
from sdexport.server.image_request import ImageRequest
from sdexport.server.image_service import ImageService
from sdexport.server.input_images import RequestImages, in_decoding_thread
from sdexport.server.job_request import JobRequest
from sdexport.server.jobs import Job
from sdexport.server.json_requests import JsonRoute
from sdexport.server.model_store import Model
from sdexport.server.native_api import with_images
from sdexport.server.openai_edits import edit_arguments
from sdexport.server.openai_errors import error_body
from sdexport.server.openai_events import event_stream, listening
from sdexport.server.openai_fields import URL, ImageFields, checked_fields, form_values
from sdexport.server.openai_images import encoded, response_body
from sdexport.server.request_context import REQUEST_ID
from sdexport.server.route_documents import ERRORS, Responses, body_document
from sdexport.server.server_errors import ServerError
from sdexport.server.size_limits import check_target_size

__all__ = ["PATHS", "error_body", "router"]

PATHS = ("/v1/images", "/v1/models")
_MOST_FILES, _MOST_FIELDS = 17, 200
_EXAMPLE = {
    "prompt": "a large red circle",
    "n": 1,
    "size": "512x512",
    "response_format": "b64_json",
    "num_inference_steps": 20,
    "seed": 1234,
}
_STREAM: Responses = {200: {"content": {"text/event-stream": {}}}}


class ModelNotFoundError(ServerError):
    """The server has no model of that name."""

    status = 404
    kind = "model_not_found"


def router(service: ImageService) -> APIRouter:
    """The routes of this API."""
    routes = APIRouter(tags=["OpenAI"], prefix="/v1", route_class=JsonRoute, responses=ERRORS)
    started = int(time.time())

    @routes.get("/models")
    async def list_models() -> Response:
        """The models of the server."""
        data = [_model_item(model, started) for model in service.models.models]
        return JSONResponse({"object": "list", "data": data})

    @routes.get("/models/{name:path}")
    async def get_model(name: str) -> Response:
        """A model of the server."""
        return JSONResponse(_model_item(_model(service, name), started))

    @routes.post("/images/generations", responses=_STREAM, openapi_extra=body_document(_EXAMPLE))
    async def generate(request: Request) -> Response:
        """Generate images from a prompt; every setting of the library may be among the fields."""
        service.queue.check_room()
        body = await request.json()
        if not isinstance(body, dict):
            raise InvalidArgumentError(f"the body must be a JSON object, got {shown(body)}")
        for name in ("image", "mask"):
            if body.get(name) is not None:
                raise InvalidArgumentError(f"{name}: use images.edit")
        fields = checked_fields(body)
        with service.request_images() as images:
            return await _answer(
                service, request, fields, fields.arguments, images, kind="image_generation"
            )

    fields_of_edit = body_document(
        {"prompt": "a large blue circle"}, "multipart/form-data", files=("image", "mask")
    )

    @routes.post("/images/edits", responses=_STREAM, openapi_extra=fields_of_edit)
    async def edit(request: Request) -> Response:
        """Edit an image, where a mask is transparent if there is one."""
        service.queue.check_room()  # before images are decoded
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise InvalidArgumentError("expected a form, multipart/form-data, with a file image")
        _check_charset(request)
        async with request.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS) as form:
            files: dict[str, list[bytes]] = {"image": [], "mask": [], "markup": []}
            texts: list[tuple[str, str]] = []
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    texts.append((name, value))
                elif name.removesuffix("[]") in files:
                    files[name.removesuffix("[]")].append(await value.read())
                else:
                    raise InvalidArgumentError(f"{shown(name)}: expected no file of that name")
        return await _edit(service, request, files, form_values(texts))

    return routes


def _check_charset(request: Request) -> None:
    """Raises: InvalidArgumentError: a form in another encoding, perhaps not one of text."""
    options = parse_options_header(request.headers["content-type"])[1]
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8"):
        raise InvalidArgumentError(f"the form's charset must be utf-8, got {shown(charset)}")


async def _edit(
    service: ImageService,
    request: Request,
    files: dict[str, list[bytes]],
    values: dict[str, Any],
) -> Response:
    for name in ("image", "mask", "markup"):
        if values.get(name) is not None:
            raise InvalidArgumentError(f"{name}: expected a file")
    if files["markup"]:
        values["markup"] = "file"  # rejected with the other fields
    if len(files["mask"]) > 1:
        raise InvalidArgumentError(f"mask: expected one file, got {len(files['mask'])}")
    fields = checked_fields(values)
    if fields.size is not None:
        check_target_size(*fields.size, service.settings)
    with service.request_images() as images:
        decoded = await in_decoding_thread(
            edit_arguments,
            files["image"],
            files["mask"][0] if files["mask"] else None,
            fields.arguments,
            fields.size,
            images.read,
        )
        arguments = {**fields.arguments, **decoded}
        return await _answer(service, request, fields, arguments, images, kind="image_edit")


async def _answer(
    service: ImageService,
    request: Request,
    fields: ImageFields,
    arguments: dict[str, Any],
    images: RequestImages,
    *,
    kind: str,
) -> Response:
    """Submit a job, and return its images or a stream of events.

    Args:
      images: decodes those of adapters, and has decoded the others.
      kind: what the names of the events begin with.
    """
    model = _model(service, fields.model)
    most = service.settings.max_images
    if arguments["num_images_per_prompt"] > most:
        raise InvalidArgumentError(f"n: at most {most} images in a request (--max-images)")
    decoded = {name: arguments.pop(name) for name in ("image", "mask_image") if name in arguments}
    checked = _checked(arguments)
    arguments = await with_images(service, checked.arguments(), images) | decoded
    job = service.submit(
        ImageRequest(model.name, arguments, checked.timeout),
        previews=fields.partial_images > 0,
        request_id=REQUEST_ID.get(),
    )
    images.keep_for(job)
    if fields.stream:
        events = await listening(service.events(job))
        return StreamingResponse(
            event_stream(service, request, job, events, fields, kind),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    await unless_disconnected(request, service.result(job))
    return JSONResponse(await _data(request, job, fields))


async def _data(request: Request, job: Job, fields: ImageFields) -> dict[str, Any]:
    """The body of the response, with the images as base64 or with their addresses."""
    if fields.response_format == URL:
        query = f"?format={fields.output_format}"
        query += f"&quality={fields.quality}" if fields.quality is not None else ""
        base = str(request.base_url).rstrip("/")
        job.unfetched.update(range(len(job.images)))
        data = [
            {"url": f"{base}/v1/jobs/{job.id}/images/{index}{query}"}
            for index in range(len(job.images))
        ]
    else:
        data = [{"b64_json": text} for text in await encoded(job.images, fields)]
    return response_body(job, fields, data)


def _checked(arguments: dict[str, Any]) -> JobRequest:
    """The arguments of a call with their types checked.

    Raises: InvalidArgumentError: an argument of another type.
    """
    try:
        return JobRequest.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidArgumentError(f"{place[:200]}: {one_line(first['msg'], 300)}") from None


def _model(service: ImageService, name: str | None) -> Model:
    """The model of a name, the default one for None.

    Raises: ModelNotFoundError.
    """
    try:
        return service.models.model(name)
    except InvalidArgumentError as error:
        raise ModelNotFoundError(str(error)) from None


def _model_item(model: Model, created: int) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": created, "owned_by": "sdexport"}
