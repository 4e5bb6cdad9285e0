"""Previews of running jobs for clients that expect them in the size of the image."""

from __future__ import annotations

from PIL import Image

from sdexport.server.jobs import Job


def full_size(job: Job, preview: Image.Image) -> Image.Image:
    """A preview in the size of the job's images."""
    if preview.size == job.size:
        return preview
    return preview.resize(job.size, Image.Resampling.BICUBIC)
