"""Which outputs of the text encoders' graphs are the embeddings of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CLIP_SKIP, HIDDEN_STATES = "clip_skip.", "hidden_states."
LAST, POOLER, PROJECTED = "last_hidden_state", "pooler_output", "text_embeds"
_EXPORTED_SKIPS = 2
_KNOWN_SKIPS = 12


@dataclass(frozen=True)
class TextLayers:
    """Where the embeddings leave a text encoder.

    penultimate: the input of the last layer, without normalisation, as SDXL takes it. Otherwise
      the last layer's output after the final normalisation, or with clip_skip an earlier layer's.
    """

    penultimate: bool = False

    def by_clip_skip(self, outputs: Sequence[str], layers: int) -> dict[int, str]:
        """The graph output for each possible clip_skip, as diffusers counts: 0 leaves out none.

        Args:
          outputs: of the graph. layers: of the encoder.
        """
        if self.penultimate:
            # Optimum also writes the state after the last layer, so the configuration decides
            present = min(layers, sum(name.startswith(HIDDEN_STATES) for name in outputs))
            return {skip: f"{HIDDEN_STATES}{present - 1 - skip}" for skip in range(present)}
        skips = (n for n in range(1, _KNOWN_SKIPS) if f"{CLIP_SKIP}{n}" in outputs)
        return {0: LAST} | {n: f"{CLIP_SKIP}{n}" for n in skips}

    def exported(self, layers: int) -> list[str]:
        """Outputs that an exported graph has after the last hidden state and the pooled one."""
        if self.penultimate:
            return [f"{HIDDEN_STATES}{n}" for n in range(layers)]
        return [f"{CLIP_SKIP}{n}" for n in clip_skips(layers)]

    def reference(self, layers: int) -> str:
        """The exported output that holds the embeddings with no layer left out."""
        return f"{HIDDEN_STATES}{layers - 1}" if self.penultimate else LAST


def clip_skips(layers: int) -> range:
    """Values of clip_skip above 0 that a graph is exported for: 1 and 2, if it has the layers."""
    return range(1, min(_EXPORTED_SKIPS + 1, layers))


def pooled_output(config: Any, *, projected: bool) -> tuple[str, int]:
    """Name and width of the pooled output of a CLIP text model with or without projection."""
    return (PROJECTED, config.projection_dim) if projected else (POOLER, config.hidden_size)
