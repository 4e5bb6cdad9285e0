"""The state of the denoising loop between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sdexport.runtime.guidance import Guidance
from sdexport.runtime.initial_latents import InitialLatents
from sdexport.runtime.text.prompt_conditions import ConditionRows, PromptConditions
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
    prompt_embeds: Embeds | PromptConditions
    conditioning: Mapping[str, np.ndarray]
    guidance: Guidance
    start: InitialLatents
    interrupted: bool = False

    @property
    def is_composed(self) -> bool:
        """Whether the prompts need more than one array of embeddings; see prompt_conditions.py."""
        return isinstance(self.prompt_embeds, PromptConditions)

    def embeds_at(self, i: int) -> np.ndarray:
        """The embeddings at step i, unless the prompts are composed."""
        embeds = self.prompt_embeds
        assert not isinstance(embeds, PromptConditions)
        return embeds(i, self.steps) if callable(embeds) else embeds

    def rows_at(self, i: int) -> ConditionRows:
        """The rows of the denoiser's batch at step i, if the prompts are composed."""
        assert isinstance(self.prompt_embeds, PromptConditions)
        return self.prompt_embeds(i, self.steps)
