"""A request for images, as every API of the server makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ImageRequest:
    """A request for images.

    Attributes:
      model: a name that the server knows; None for the first one.
      arguments: of a pipeline call, by name. Images are Pillow images. LoRAs are (name, scale).
        ControlNets, T2I-Adapters and IP-Adapters are mappings with `name`, and `image` or `images`.
      timeout: seconds, at most the server's own.
      loras: the files of its LoRAs, those that its prompts name included; known once it is checked.
    """

    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    loras: tuple[Path, ...] = ()
