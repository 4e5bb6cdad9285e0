"""Limits of a size that images are resized to before a job is submitted."""

from __future__ import annotations

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.server.server_settings import ServerSettings


def check_target_size(width: int, height: int, settings: ServerSettings) -> None:
    """Check a size before memory is taken for it.

    Raises: InvalidArgumentError: no pixels, or more than the server generates.
    """
    for name, side in (("width", width), ("height", height)):
        if not 1 <= side <= settings.max_side:
            raise InvalidArgumentError(
                f"{name} must be 1 to {settings.max_side:,}, got {shown(side)}"
            )
    if width * height > settings.max_pixels:
        raise InvalidArgumentError(
            f"{width}x{height} are {width * height:,} pixels; the limit is "
            f"{settings.max_pixels:,} (--max-pixels)"
        )
