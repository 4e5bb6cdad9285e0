"""The denoiser's prediction for prompts of several parts, or of different lengths.

Source: Liu et al. 2022, arXiv 2206.01714, eq. 11: composition by conjunction.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sdexport.engines import Session, TensorSpec
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.component_sessions import chunks, finite
from sdexport.runtime.expected_calls import STEP
from sdexport.runtime.loop_state import LoopState
from sdexport.runtime.models.text_layers import PROJECTED
from sdexport.runtime.text.prompt_conditions import (
    ConditionRows,
    equal_lengths,
    needs_unconditional,
)


class ComposedPredictor:
    """The guided prediction for all images, composed of those for the parts of their prompts.

    Args:
      state: read at every step. Of its conditioning each image has a row, or two with the
        unconditional ones first; pooled embeddings among it are replaced by those of the step.
      max_batch: how many images one call of the denoiser may take; None for all.
    """

    def __init__(self, unet: Session, state: LoopState, max_batch: int | None) -> None:
        self._unet, self._state, self._max_batch = unet, state, max_batch
        self._key: tuple[object, ...] = ()
        self._conditioning: Mapping[str, np.ndarray] = {}
        self._bound: list[tuple[list[int], Session]] = []

    def __call__(self, sample: np.ndarray, timestep: float, i: int) -> np.ndarray:
        """The prediction at step i.

        Args:
          sample: (B, C, h, w) float32, the latents as the scheduler scales them.
        Returns: (B, C, h, w) float32.
        """
        state, count = self._state, len(sample)
        rows = state.rows_at(i)
        guided = state.guidance.is_guided_at(i, state.steps)
        unconditional = guided or any(map(needs_unconditional, rows.parts(count)))
        if self._key != (rows, unconditional) or self._conditioning is not state.conditioning:
            self._conditioning = state.conditioning
            self._bind(rows, unconditional, count)
            self._key = rows, unconditional
        sample = state.start.denoiser_input(sample)
        times = step_feeds(self._unet.inputs, timestep, i)
        images = np.array(rows.images)
        predictions: dict[int, np.ndarray] = {}
        for places, session in self._bound:
            feeds = {"sample": sample[images[places]], **times}
            noise_pred = finite(session.run(feeds)["out_sample"], self._unet.name, f"step {i}")
            predictions |= dict(zip(places, noise_pred, strict=True))
        return self._combined(rows, predictions, count, guided)

    def _combined(
        self, rows: ConditionRows, predictions: dict[int, np.ndarray], count: int, guided: bool
    ) -> np.ndarray:
        unconditional: list[np.ndarray | None] = [None] * count
        parts: list[list[tuple[float, np.ndarray]]] = [[] for _ in range(count)]
        for place, prediction in predictions.items():
            weight, image = rows.weights[place], rows.images[place]
            if weight is None:
                unconditional[image] = prediction
            else:
                parts[image].append((weight, prediction))
        composed = np.stack([compose(*each) for each in zip(unconditional, parts, strict=True)])
        if not guided:
            return composed
        noise_pred_uncond = np.stack([each for each in unconditional if each is not None])
        return self._state.guidance.combine(np.concatenate([noise_pred_uncond, composed]))

    def _bind(self, rows: ConditionRows, unconditional: bool, count: int) -> None:
        """Bind what stays constant, for each batch: rows of equal length, at most max_batch."""
        if unconditional and None not in rows.weights:
            raise InvalidArgumentError(
                "guidance_scale was 1 or less at the first step, so there is no negative prompt: "
                "it cannot be raised above 1"
            )
        self.close()
        chosen = [i for i, w in enumerate(rows.weights) if unconditional or w is not None]
        embeds = dict(zip(chosen, equal_lengths([rows.embeds[i] for i in chosen]), strict=True))
        limit = None if self._max_batch is None else self._max_batch * (1 + unconditional)
        for length in dict.fromkeys(len(each) for each in embeds.values()):
            group = [i for i in chosen if len(embeds[i]) == length]
            for part in chunks(len(group), limit):
                places = group[part]
                inputs = self._further_inputs(rows, places, count)
                inputs["encoder_hidden_states"] = np.stack([embeds[i] for i in places])
                self._bound.append((places, self._unet.bind(shared=(), **inputs)))

    def _further_inputs(
        self, rows: ConditionRows, places: list[int], count: int
    ) -> dict[str, np.ndarray]:
        """The conditioning of some rows: that of their images, with their own pooled embeddings."""
        inputs = {}
        for name, values in self._conditioning.items():
            first = {
                True: 0,
                False: len(values) - count,
            }  # of the unconditional rows, of the others
            inputs[name] = values[[first[rows.weights[i] is None] + rows.images[i] for i in places]]
        if PROJECTED in inputs and rows.pooled is not None:
            inputs[PROJECTED] = rows.pooled[places]
        return inputs

    def close(self) -> None:
        """Release the bound inputs."""
        for _, session in self._bound:
            session.close()
        self._bound, self._key = [], ()


def compose(unconditional: np.ndarray | None, parts: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """uncond + sum of weight * (cond - uncond) over the parts of a prompt, eq. 11.

    Args:
      unconditional: may be None if the weights add up to 1.
      parts: weight and prediction of each; of a single one with weight 1 it is the result.
    """
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    composed = np.zeros_like(parts[0][1]) if unconditional is None else unconditional.copy()
    for weight, prediction in parts:
        difference = prediction if unconditional is None else prediction - unconditional
        composed += np.float32(weight) * difference
    return composed


def step_feeds(inputs: tuple[TensorSpec, ...], timestep: float, i: int) -> dict[str, np.ndarray]:
    """The denoiser's timestep, and the index of the step if it takes that, by input.

    Both are in the shape and dtype of their input.
    """
    values = {"timestep": timestep, STEP: i}
    return {
        spec.name: np.full((1,) * len(spec.shape), values[spec.name], spec.dtype)
        for spec in inputs
        if spec.name in values
    }
