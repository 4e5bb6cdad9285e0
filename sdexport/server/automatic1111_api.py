"""AUTOMATIC1111's API, for programs that were written for its web UI.

Source: modules/api/api.py of AUTOMATIC1111's web UI 1.10, and the web API of its ControlNet
extension.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from sdexport.engines.available_memory import available_bytes
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.server import automatic1111_lists as lists
from sdexport.server.automatic1111_generate import generate, planned
from sdexport.server.automatic1111_info import png_info
from sdexport.server.automatic1111_options import Options
from sdexport.server.automatic1111_requests import IDLE_STATE, RunningRequests
from sdexport.server.disconnects import unless_disconnected
from sdexport.server.image_service import ImageService
from sdexport.server.input_images import decoded_image, in_decoding_thread
from sdexport.server.json_requests import JsonRoute
from sdexport.server.output_images import as_base64, encoded_image
from sdexport.server.previews import full_size
from sdexport.server.request_context import REQUEST_ID
from sdexport.server.route_documents import ERRORS, body_document
from sdexport.server.server_errors import ServerError

PATHS = ("/sdapi", "/controlnet")
PREFIX = "/sdapi/v1/"
NOT_SUPPORTED = {
    "extra-single-image": "upscaling and face restoration are not supported",
    "extra-batch-images": "upscaling and face restoration are not supported",
    "interrogate": "describing images is not supported",
    "create/embedding": "training is not supported",
    "create/hypernetwork": "training is not supported",
    "train/embedding": "training is not supported",
    "train/hypernetwork": "training is not supported",
    "refresh-loras": "LoRAs are listed when the server starts",
    "unload-checkpoint": "models are closed by themselves, under --memory-limit",
    "reload-checkpoint": "models are opened by themselves",
    "server-kill": "stop the process",
    "server-restart": "stop the process and start it again",
    "server-stop": "stop the process",
}
"""Routes that do nothing here, and why."""
NOTHING_TO_REFRESH = ("refresh-checkpoints", "refresh-vae", "refresh-embeddings")
"""Routes that change nothing: models are named when the server starts."""
_EXAMPLE = {
    "prompt": "a large red circle",
    "negative_prompt": "blurry",
    "steps": 20,
    "sampler_name": "DPM++ 2M",
    "scheduler": "Karras",
    "cfg_scale": 7,
    "seed": 1234,
    "width": 512,
    "height": 512,
}


class NotSupportedError(ServerError):
    """A route of AUTOMATIC1111's API that this server does not have."""

    status = 501
    kind = "not_supported"


def error_body(status: int, kind: str, message: str) -> dict[str, Any]:
    """The body of an error, as the web UI makes it of an exception."""
    return {"error": kind, "detail": message, "body": "", "errors": message}


def router(service: ImageService) -> APIRouter:
    """The routes of this API."""
    found = APIRouter(tags=["AUTOMATIC1111"], route_class=JsonRoute, responses=ERRORS)
    models = Models(service)
    options = Options(models.find, models.title, service.models.model(None).name)
    running = RunningRequests()
    _add_generation(found, service, options, running)
    _add_progress(found, service, options, running)
    _add_options(found, models, options)
    _add_lists(found, service, models)
    _add_controlnet(found, service)
    _add_not_supported(found)
    return found


class Models:
    """The server's models under the names that this API has for them."""

    def __init__(self, service: ImageService) -> None:
        self._store = service.models

    def sha256(self, name: str) -> str | None:
        """The digest of a model's manifest."""
        return self._store.model(name).package.digest

    def title(self, name: str) -> str:
        """What clients show, and send as sd_model_checkpoint."""
        return lists.model_title(name, self.sha256(name))

    def items(self) -> list[dict[str, Any]]:
        """The list of sd-models."""
        return [lists.model_item(model.name, model.package.digest) for model in self._store.models]

    def find(self, wanted: object) -> str:
        """The name of the model that a client means.

        Args:
          wanted: its name, title, or hash; case does not matter, nor does the ending of a file.
        Raises: InvalidArgumentError: there is none.
        """
        text = wanted.removesuffix(".safetensors") if isinstance(wanted, str) else ""
        for item in self.items():
            known = (item["model_name"], item["title"], item["hash"], item["sha256"])
            if text and text.casefold() in (each.casefold() for each in known if each):
                return str(item["model_name"])
        listed = ", ".join(item["title"] for item in self.items())
        raise InvalidArgumentError(
            f"sd_model_checkpoint: unknown model {shown(wanted)}; the server has {listed}"
        )


def _add_generation(
    routes: APIRouter, service: ImageService, options: Options, running: RunningRequests
) -> None:
    async def answer(request: Request, *, image: bool) -> Response:
        service.queue.check_room()  # before images are decoded
        body = await request.json()
        with service.request_images() as images:
            plan = await in_decoding_thread(planned, service, options, body, images, image=image)
            work = generate(service, running, plan, REQUEST_ID.get())
            return JSONResponse(await unless_disconnected(request, work))

    @routes.post(PREFIX + "txt2img", openapi_extra=body_document(_EXAMPLE))
    async def txt2img(request: Request) -> Response:
        """Generate images from a prompt."""
        return await answer(request, image=False)

    with_image = {**_EXAMPLE, "init_images": ["iVBORw0KGgo..."], "denoising_strength": 0.6}

    @routes.post(PREFIX + "img2img", openapi_extra=body_document(with_image))
    async def img2img(request: Request) -> Response:
        """Generate images from images, or from parts of them."""
        return await answer(request, image=True)

    image_alone = {"image": "iVBORw0KGgo..."}

    @routes.post(PREFIX + "png-info", openapi_extra=body_document(image_alone))
    async def read_png_info(request: Request) -> Response:
        """The settings that an image carries."""
        body = _object(await request.json())
        with service.request_images() as images:
            image = await in_decoding_thread(decoded_image, body.get("image"), "image", images)
            return JSONResponse(await asyncio.to_thread(png_info, image))


def _add_progress(
    routes: APIRouter, service: ImageService, options: Options, running: RunningRequests
) -> None:
    @routes.get(PREFIX + "progress")
    async def progress(skip_current_image: bool = False) -> Response:
        """How far the first of the running requests is, with a preview."""
        request = running.first
        if request is None:
            idle = {"progress": 0.0, "eta_relative": 0.0, "state": IDLE_STATE}
            return JSONResponse({**idle, "current_image": None, "textinfo": None})
        job, preview = request.current, None
        latest = None if job is None else job.preview  # read once: it goes when the job ends
        every = options.changed({}, keep=False)["show_progress_every_n_steps"]
        if job is not None and latest is not None and every > 0 and not skip_current_image:
            shown_ = full_size(job, latest)
            preview = as_base64(await asyncio.to_thread(encoded_image, shown_))
        return JSONResponse(
            {
                "progress": request.progress,
                "eta_relative": request.eta(),
                "state": request.state(),
                "current_image": preview,
                "textinfo": None,
            }
        )

    @routes.post(PREFIX + "interrupt")
    async def interrupt() -> Response:
        """End the first of the running requests; it returns the images that are done."""
        for job in running.interrupt():
            service.queue.cancel(job, "interrupted")
        return JSONResponse({})

    @routes.post(PREFIX + "skip")
    async def skip() -> Response:
        """Leave out the batch that runs; the request goes on with the next."""
        for job in running.skip():
            service.queue.cancel(job, "skipped")
        return JSONResponse({})


def _add_options(routes: APIRouter, models: Models, options: Options) -> None:
    @routes.get(PREFIX + "options")
    async def get_options() -> Response:
        """All options that this server has."""
        return JSONResponse(options.shown(models.sha256))

    changes = {"CLIP_stop_at_last_layers": 2}

    @routes.post(PREFIX + "options", openapi_extra=body_document(changes))
    async def set_options(request: Request) -> Response:
        """Change options, all of those in the body or none."""
        options.changed(_object(await request.json()))
        return JSONResponse(None)


def _add_lists(routes: APIRouter, service: ImageService, models: Models) -> None:
    def loras() -> list[dict[str, Any]]:
        return [lists.lora_item(name) for name in service.names.loras]

    def scripts() -> dict[str, list[str]]:
        return lists.scripts(controlnet=bool(service.names.adapters["controlnets"]))

    listed: dict[str, Callable[[], Any]] = {
        "samplers": lists.samplers,
        "schedulers": lists.schedulers,
        "sd-models": models.items,
        "loras": loras,
        "scripts": scripts,
        "embeddings": lambda: {"loaded": {}, "skipped": {}},
        "memory": lambda: lists.memory(available_bytes()),
        "cmd-flags": lambda: {"api": True},
        **dict.fromkeys(lists.NO_ITEMS, list),
    }
    for name, items in listed.items():
        routes.add_api_route(
            PREFIX + name, _answering(items), methods=["GET"], summary=f"List {name}"
        )


def _add_controlnet(routes: APIRouter, service: ImageService) -> None:
    def names() -> list[str]:
        return sorted(service.names.adapters["controlnets"])

    for name, items in {
        "version": lambda: {"version": 2},
        "model_list": lambda: {"model_list": names()},
        "module_list": lambda: {"module_list": ["none"], "module_detail": {}},
    }.items():
        routes.add_api_route(
            f"/controlnet/{name}", _answering(items), methods=["GET"], summary=f"ControlNet {name}"
        )
    routes.add_api_route(
        "/controlnet/detect",
        _failing("controlnet/detect: preprocessors are not supported; send control images"),
        methods=["POST"],
    )


def _add_not_supported(routes: APIRouter) -> None:
    for name, why in NOT_SUPPORTED.items():
        routes.add_api_route(
            PREFIX + name, _failing(f"{name}: {why}"), methods=["POST"], summary="Not supported"
        )
    for name in NOTHING_TO_REFRESH:
        routes.add_api_route(
            PREFIX + name, _answering(lambda: None), methods=["POST"], summary="Change nothing"
        )


def _object(body: Any) -> dict[str, Any]:
    """A body that is an object.

    Raises: InvalidArgumentError: it is none.
    """
    if not isinstance(body, dict):
        raise InvalidArgumentError(f"the body must be a JSON object, got {shown(body)}")
    return body


def _answering(items: Callable[[], Any]) -> Callable[[], Any]:
    async def answer() -> Response:
        return JSONResponse(items())

    return answer


def _failing(message: str) -> Callable[[], Any]:
    async def answer() -> Response:
        raise NotSupportedError(message)

    return answer
