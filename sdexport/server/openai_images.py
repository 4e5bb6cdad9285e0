"""Images in responses of OpenAI's API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from anyio import to_thread
from PIL import Image

from sdexport.server.jobs import Job
from sdexport.server.openai_fields import ImageFields
from sdexport.server.output_images import as_base64, encoded_image

NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Nothing is billed by tokens here, but clients read the numbers."""


async def encoded(images: Sequence[Image.Image], fields: ImageFields) -> list[str]:
    """Images as base64 of files in the requested format, with their settings."""

    def encode() -> list[str]:
        format_, quality = fields.output_format, fields.quality
        return [as_base64(encoded_image(image, format_, quality)) for image in images]

    return await to_thread.run_sync(encode)


def response_body(job: Job, fields: ImageFields, data: list[dict[str, str]]) -> dict[str, Any]:
    """The body of a response.

    Args:
      data: an image each.
    """
    found: dict[str, Any] = {
        "created": int(time.time()),
        "data": data,
        "background": "opaque",
        "output_format": fields.output_format,
        "size": size_text(job.images[0].size),
        "usage": NO_TOKENS,
    }
    return found | ({"safety_identifier": fields.user} if fields.user else {})


def size_text(size: tuple[int, int]) -> str:
    """A size as OpenAI writes it: "512x512"."""
    return f"{size[0]}x{size[1]}"
