"""The denoiser's guided prediction, with the inputs that stay constant bound once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sdexport.engines import Session
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks
from sdexport.runtime.component_sessions import chunks, finite
from sdexport.runtime.composition import step_feeds
from sdexport.runtime.expected_calls import SHARED_INPUTS
from sdexport.runtime.loop_state import LoopState


class Predictor:
    """The guided prediction for all images of a batch.

    Args:
      state: read at every step; the inputs are bound again when embeddings or conditioning are
        other objects than before.
      max_batch: how many images one call of the denoiser may take; None for all.
    """

    def __init__(self, unet: Session, state: LoopState, max_batch: int | None) -> None:
        self._unet, self._state, self._max_batch = unet, state, max_batch
        self._embeds: np.ndarray | None = None
        self._conditioning: Mapping[str, np.ndarray] = {}
        self._bound: dict[tuple[int, bool], Session] = {}

    def __call__(self, sample: np.ndarray, timestep: float, i: int) -> np.ndarray:
        """The prediction at step i.

        Args:
          sample: (B, C, h, w) float32, the latents as the scheduler scales them.
        Returns: (B, C, h, w) float32.
        """
        state, count = self._state, len(sample)
        self._update(state.embeds_at(i), count)
        guidance = state.guidance
        guided = guidance.is_guided_at(i, state.steps)
        sample = state.start.denoiser_input(sample)
        times = step_feeds(self._unet.inputs, timestep, i)
        parts = []
        for rows in chunks(count, self._max_batch):
            unet = self._session(rows, count, guided)
            feeds = {"sample": sample[rows], **times}
            noise_pred = finite(unet.run(feeds)["out_sample"], unet.name, f"step {i}")
            parts.append(guidance.combine(noise_pred) if guided else noise_pred)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _update(self, embeds: np.ndarray, count: int) -> None:
        """Release the bound inputs if they are no longer those of this step."""
        conditioning = self._state.conditioning
        if embeds is self._embeds and conditioning is self._conditioning:
            return
        checks.float_array("prompt_embeds", embeds, (None, None, None))
        guidance = self._state.guidance
        each = 2 if guidance.is_guided else 1
        if len(embeds) != count * each:
            raise InvalidArgumentError(
                f"prompt_embeds: expected {'two rows' if each == 2 else 'one row'} for each of "
                f"{count} images at guidance_scale {guidance.scale:g}, got {len(embeds)} rows"
            )
        self.close()
        self._embeds, self._conditioning = embeds, conditioning

    def _session(self, rows: slice, count: int, guided: bool) -> Session:
        key = rows.start, guided
        if key not in self._bound:

            def rows_of(values: np.ndarray) -> np.ndarray:
                conditional = values[len(values) - count :][rows]
                return np.concatenate([values[rows], conditional]) if guided else conditional

            inputs = {"encoder_hidden_states": self._embeds, **self._conditioning}
            shared = SHARED_INPUTS if guided else ()
            constants = {name: rows_of(values) for name, values in inputs.items()}  # type: ignore[arg-type]
            self._bound[key] = self._unet.bind(shared=shared, **constants)
        return self._bound[key]

    def close(self) -> None:
        """Release the bound inputs."""
        for session in self._bound.values():
            session.close()
        self._bound.clear()
