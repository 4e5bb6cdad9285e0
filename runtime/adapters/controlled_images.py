"""What the adapters of a call need to know of the images that it generates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdexport.runtime.images.control_images import Crop


@dataclass(frozen=True)
class ControlledImages:
    """What is generated with control images.

    count: of images. width, height: in pixels. resize_mode, crops: see ControlImages.samples.
    steps: indices of the steps that are run. num_inference_steps: as diffusers counts them, which
    is fewer for schedulers that run twice a step. max_batch: of the pipeline.
    """

    count: int
    width: int
    height: int
    steps: range
    resize_mode: str = "stretch"
    crops: Sequence[Crop] = ()
    max_batch: int | None = None
    num_inference_steps: int = 0
