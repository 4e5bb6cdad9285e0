"""The application of a server: all APIs over one ImageService."""

from __future__ import annotations

import functools
import json

import anyio
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

from sdexport.runtime.version import __version__
from sdexport.server import automatic1111_api, native_api, openai_api, page_routes
from sdexport.server.error_bodies import ErrorBodies
from sdexport.server.image_service import ImageService
from sdexport.server.request_guard import EXPOSED_HEADERS, RequestGuard, cors_origins
from sdexport.server.server_metrics import CONTENT_TYPE, ServerMetrics
from sdexport.server.server_settings import ServerSettings


def create_app(
    service: ImageService,
    settings: ServerSettings | None = None,
    metrics: ServerMetrics | None = None,
) -> FastAPI:
    """The ASGI application of a server.

    Args:
      settings: default those of the service.
      metrics: that the service reports to; default ones that know of requests alone.
    """
    settings = settings or service.settings
    metrics = metrics or ServerMetrics()
    metrics.watch(service)
    errors = ErrorBodies(
        {
            **dict.fromkeys(openai_api.PATHS, openai_api.error_body),
            **dict.fromkeys(automatic1111_api.PATHS, automatic1111_api.error_body),
        }
    )
    app = FastAPI(title="sdexport", version=__version__, openapi_url=None)
    for api in (native_api, openai_api, automatic1111_api):
        app.include_router(api.router(service))
    app.include_router(_state(service, metrics))
    app.include_router(_document(app))
    app.include_router(page_routes.router())
    errors.install(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins(settings),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-Id"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(RequestGuard, settings=settings, errors=errors, metrics=metrics)
    return app


def _document(app: FastAPI) -> APIRouter:
    """The OpenAPI document, which is made when it is first asked for, outside of the event loop."""
    routes = APIRouter(include_in_schema=False)

    @functools.cache
    def made() -> bytes:
        document = app.openapi()
        for methods in document["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)  # invalid requests are answered with 400
        return json.dumps(document).encode()

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        return Response(await anyio.to_thread.run_sync(made), media_type="application/json")

    return routes


def _state(service: ImageService, metrics: ServerMetrics) -> APIRouter:
    """What those ask who watch the server."""
    routes = APIRouter(tags=["State"])

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The server answers."""
        return {"status": "ok"}

    @routes.get("/readyz")
    async def readyz() -> Response:
        """Whether the server takes jobs: 200, or 503 while it starts and when it stops."""
        is_ready = service.is_ready and not service.queue.is_closing
        state = "ready" if is_ready else "stopping" if service.is_ready else "starting"
        return JSONResponse({"status": state}, 200 if is_ready else 503)

    @routes.get("/metrics")
    async def prometheus() -> Response:
        """Metrics in Prometheus' format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return routes
