"""Previews of running jobs for clients that expect them in the size of the image."""

from __future__ import annotations

from PIL import Image

from sdexport.server.image_service import ImageService
from sdexport.server.jobs import Job
from sdexport.server.request_checks import requested_size


def full_size(service: ImageService, job: Job, preview: Image.Image) -> Image.Image:
    """A preview in the size that the job generates."""
    size = requested_size(job.request.arguments, service.models.model(job.request.model))
    return preview if preview.size == size else preview.resize(size, Image.Resampling.BICUBIC)
