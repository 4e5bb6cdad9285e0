"""OpenAI's images API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from sdexport.server.image_service import ImageService

PATHS = ("/v1/images", "/v1/models")


def router(service: ImageService) -> APIRouter:
    """The routes of this API."""
    return APIRouter(tags=["OpenAI"])


def error_body(status: int, kind: str, message: str) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
