"""The page that people use in a browser, and the route with which it reads an image's settings."""

from __future__ import annotations

import io
import json
from functools import cache
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from sdexport.runtime.images.parameters import Parameters
from sdexport.runtime.images.read_parameters import read_parameters
from sdexport.server.job_state import ErrorBody
from sdexport.server.route_documents import error_responses
from sdexport.server.server_errors import JobNotFoundError

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


_ERRORS = error_responses(
    {400: "The body is no image, or one without settings", 503: "The server is too busy"},
    ErrorBody,
    queued=False,
)


def router() -> APIRouter:
    """The routes of the page: its files, which need no key, and POST /v1/image-settings."""
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    def page() -> Response:
        return _file("index.html")

    @routes.get("/page/{name}", include_in_schema=False)
    def page_file(name: str) -> Response:
        return _file(name)

    @routes.post(
        "/v1/image-settings",
        tags=["Jobs"],
        responses=_ERRORS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def image_settings(request: Request) -> Response:
        """The settings that an image file carries: of sdexport, or AUTOMATIC1111's text.

        The body is the file: PNG, JPEG or WebP. `settings` has the arguments of a call by their own
        names, without those that have their default, and what is recorded about the image.
        """
        found = await run_in_threadpool(settings_of, await request.body())
        # in ASCII: texts of strange files may have no UTF-8
        return Response(json.dumps(found), media_type="application/json")

    return routes


def settings_of(content: bytes) -> dict[str, Any]:
    """The settings in an image file, as the page takes them.

    Args:
      content: of a PNG, JPEG or WebP file.
    Raises: InvalidArgumentError: no image, or one without settings.
    """
    found = read_parameters(io.BytesIO(content))
    usual = Parameters(prompt="", version=None).to_dict()
    settings = {
        name: value
        for name, value in found.to_dict().items()
        if name == "prompt" or value != usual[name]
    }
    return {"settings": settings, "not_understood": dict(found.not_understood)}


def _file(name: str) -> Response:
    content = page_files().get(name)
    if content is None:
        raise JobNotFoundError("the page has no such file")
    ending = name[name.rindex(".") :]
    return Response(content, media_type=MEDIA_TYPES[ending], headers=HEADERS)


@cache
def page_files() -> dict[str, bytes]:
    """The files of the page by name; no name of a request becomes a path."""
    folder = resources.files("sdexport.server") / "page"
    return {
        each.name: each.read_bytes()
        for each in folder.iterdir()
        if each.name.endswith(tuple(MEDIA_TYPES))
    }
