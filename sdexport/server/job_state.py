"""What the OpenAPI document says of a job's state; see native_api.describe_job."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

_DONE: JsonValue = {
    "id": "0M9K2m5cTq0JX0z2mJ4x1g",
    "status": "done",
    "url": "/v1/jobs/0M9K2m5cTq0JX0z2mJ4x1g",
    "model": "demo",
    "count": 1,
    "step": 8,
    "steps": 8,
    "images": [
        {
            "url": "/v1/jobs/0M9K2m5cTq0JX0z2mJ4x1g/images/0",
            "parameters": {"prompt": "a red circle", "seed": 1, "num_inference_steps": 8},
        }
    ],
    "seconds": {"encode": 0.01, "denoise": 0.4, "decode": 0.05},
}


class JobImage(BaseModel):
    """An image of a job: where its file is, and all its settings."""

    url: str
    parameters: dict[str, Any]
    nsfw_content_detected: bool | None = Field(None, description="If images are checked.")


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class ErrorBody(BaseModel):
    """The body of an error."""

    error: ErrorDetail


class JobState(BaseModel):
    """The state of a job."""

    model_config = ConfigDict(json_schema_extra={"examples": [_DONE]})

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    url: str
    model: str
    count: int = Field(description="Images.")
    step: int
    steps: int
    position: int | None = Field(None, description="Jobs before it, while it waits.")
    images: list[JobImage] | None = Field(None, description="When it is done.")
    seconds: dict[str, float] | None = Field(None, description="Of each stage.")
    warnings: list[str] | None = None
    error: ErrorDetail | None = Field(None, description="If it failed or was cancelled.")
