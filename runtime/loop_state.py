"""The state of the denoising loop between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sdexport.runtime.guidance import Guidance
from sdexport.runtime.initial_latents import InitialLatents
from sdexport.runtime.text.prompt_embeds import Embeds


@dataclass
class LoopState:
    """What the next step starts from; it may be changed between two steps.

    steps: of the scheduler, which functions of the step index are called with. latents:
    (B, C, h, w) float32. prompt_embeds, conditioning: of the denoiser, two rows for each
    image if guidance.is_guided, else one. start: the input image and the mask. interrupted: run no
    further step.
    """

    steps: int
    latents: np.ndarray
    prompt_embeds: Embeds
    conditioning: Mapping[str, np.ndarray]
    guidance: Guidance
    start: InitialLatents
    interrupted: bool = False

    def embeds_at(self, i: int) -> np.ndarray:
        """The embeddings at step i."""
        embeds = self.prompt_embeds
        return embeds(i, self.steps) if callable(embeds) else embeds
