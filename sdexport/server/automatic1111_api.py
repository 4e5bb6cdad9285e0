"""AUTOMATIC1111's API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from sdexport.server.image_service import ImageService

PATHS = ("/sdapi",)


def router(service: ImageService) -> APIRouter:
    """The routes of this API."""
    return APIRouter(tags=["AUTOMATIC1111"])


def error_body(status: int, kind: str, message: str) -> dict[str, Any]:
    """The body of an error."""
    return {"error": kind, "detail": message, "body": "", "errors": message}
