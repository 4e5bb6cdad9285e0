"""OpenVINO GenAI with given latents, and its schedulers by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

SCHEDULERS = {
    "lms": genai.Scheduler.Type.LMS_DISCRETE,
    "euler": genai.Scheduler.Type.EULER_DISCRETE,
}


class FixedLatents(genai.Generator):
    """A generator that returns given latents."""

    def __init__(self, latents: np.ndarray) -> None:
        genai.Generator.__init__(self)
        self._latents = latents

    def next(self) -> float:
        raise RuntimeError("the scheduler draws noise; use one that does not")

    def randn_tensor(self, shape: Any) -> ov.Tensor:
        return ov.Tensor(np.ascontiguousarray(self._latents.reshape(list(shape))))

    def seed(self, new_seed: int) -> None:
        """Ignored: the latents are fixed."""
