"""What the UNet is told beside the latents: embeddings of texts, sizes, scores and scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines import Session
from runtime.components import chunks, finite
from runtime.package import Package
from runtime.prompt import apply_weights, tokenize_weighted

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
PENULTIMATE = "hidden_states."


@dataclass(frozen=True)
class Encoded:
    """Embeddings of texts: embeds (B, n, width); pooled (B, width), which only SDXL has."""

    embeds: np.ndarray
    pooled: np.ndarray | None = None


class TextEncoders:
    """The text encoders of a package, each with its tokenizer.

    Args:
      session: gives the open session of a component.
      max_batch: rows that an encoder is given at once.
    """

    def __init__(
        self, package: Package, session: Callable[[str], Session], max_batch: int | None
    ) -> None:
        self._session, self._max_batch = session, max_batch
        self.tokenizers = {
            name: package.tokenizer(name)
            for name in TEXT_ENCODERS
            if name in package.manifest.components
        }

    def encode(
        self,
        texts: Sequence[str],
        *,
        negatives: int = 0,
        prompt_weights: bool = False,
        clip_skip: int = 0,
    ) -> Encoded:
        """Embeddings as the model was trained on: of two encoders side by side, if there are two.

        Args:
          prompt_weights: read weights in brackets and prompts of any length; see runtime.prompt.
          negatives: how many of the first texts are negative prompts; like diffusers, clip_skip
            leaves those alone.
          clip_skip: layers to leave out at the end.
        Raises: ValueError: not valid Unicode; a clip_skip that the package has no output for.
        """
        sides, pooled = [], None
        for name, tokenizer in self.tokenizers.items():
            if prompt_weights:
                tokens = tokenize_weighted(tokenizer, texts)
                rows = tokens.input_ids.shape[1]
                hidden, of_text = self._run(name, tokens.flat_ids, negatives * rows, clip_skip)
                sides.append(apply_weights(hidden, tokens))
                of_text = None if of_text is None else of_text[::rows]
            else:
                hidden, of_text = self._run(name, tokenizer(texts), negatives, clip_skip)
                sides.append(hidden)
            pooled = of_text if of_text is not None else pooled
        return Encoded(sides[0] if len(sides) == 1 else np.concatenate(sides, axis=-1), pooled)

    def _run(
        self, name: str, input_ids: np.ndarray, negatives: int, clip_skip: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        session, output, whole = self._session(name), *self._outputs(name, clip_skip)
        ids = input_ids.astype(session.inputs[0].dtype)
        found = [session.run({"input_ids": ids[r]}) for r in chunks(len(ids), self._max_batch)]
        hidden = np.concatenate([each[output] for each in found])
        if clip_skip and negatives:
            hidden[:negatives] = np.concatenate([each[whole] for each in found])[:negatives]
        pooled = None
        if "text_embeds" in found[0]:
            pooled = np.concatenate([each["text_embeds"] for each in found])
            finite(pooled, name, "the prompt")
        return finite(hidden, name, "the prompt"), pooled

    def _outputs(self, name: str, clip_skip: int) -> tuple[str, str]:
        """The outputs that hold the embeddings with layers left out, and with none.

        SDXL takes the last but one layer's for the whole.
        """
        outputs = [spec.name for spec in self._session(name).outputs]
        layers = sum(output.startswith(PENULTIMATE) for output in outputs)
        if "text_encoder_2" in self.tokenizers:
            able = {n: f"{PENULTIMATE}{layers - 1 - n}" for n in range(layers)}
        else:
            able = {0: "last_hidden_state"}
            able |= {n: f"clip_skip.{n}" for n in range(1, 12) if f"clip_skip.{n}" in outputs}
        if isinstance(clip_skip, bool) or clip_skip not in able:
            raise ValueError(
                f"clip_skip must be one of {', '.join(map(str, able))} with this package, "
                f"got {clip_skip!r:.20}"
            )
        return able[clip_skip], able[0]


@dataclass(frozen=True)
class Sizes:
    """What SDXL is told of a picture, each (height, width) in pixels, and what its refiner is.

    Source: arXiv 2307.01952, sections 2.2 and 2.5.
    """

    original_size: tuple[int, int]
    target_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int] = (0, 0)
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    def time_ids(self, count: int, *, scored: bool, guided: bool) -> np.ndarray:
        """(B, 6), or (B, 5) for the refiner, float32; twice as many rows if guided.

        Args:
          scored: whether an aesthetic score takes the place of the target size.
        """
        base = [*self.original_size, *self.crops_coords_top_left]
        rows = [
            [*base, score] if scored else [*base, *self.target_size]
            for score in (self.negative_aesthetic_score, self.aesthetic_score)
        ]
        return np.repeat(np.array(rows if guided else rows[1:], np.float32), count, axis=0)


def guidance_embedding(scale: float, width: int) -> np.ndarray:
    """How a consistency model is told the guidance scale, (1, width) float32.

    Source: the sinusoids of arXiv 1706.03762, section 3.5, over 1000 (scale - 1), as diffusers lays
      them out.
    """
    half = width // 2
    frequencies = np.exp(np.arange(half) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (scale - 1.0) * frequencies
    embedding = np.zeros(width)
    embedding[: 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)])
    return embedding.astype(np.float32)[None]


def conditions(
    unet: Session,
    index: Mapping[str, Any],
    pooled: np.ndarray | None,
    sizes: Sizes,
    guidance_scale: float,
    count: int,
    *,
    guided: bool,
) -> dict[str, np.ndarray]:
    """The further inputs that a UNet asks for, a row for each of the embeddings.

    Args:
      index: the package's model_index.json.
      pooled: (B or 2B, width) from the text encoders.
      count: of pictures.
    Raises: ValueError: the UNet wants pooled embeddings and there are none.
    """
    wanted = {spec.name: spec.shape for spec in unet.inputs}
    rows = count * (2 if guided else 1)
    found: dict[str, np.ndarray] = {}
    if "text_embeds" in wanted:
        if pooled is None:
            raise ValueError("pooled_prompt_embeds must come with prompt_embeds for this package")
        scored = bool(index.get("requires_aesthetics_score")) or wanted["time_ids"][-1] == 5
        found["text_embeds"] = pooled
        found["time_ids"] = sizes.time_ids(count, scored=scored, guided=guided)
    if "timestep_cond" in wanted:
        width = wanted["timestep_cond"][-1]
        if not isinstance(width, int):
            raise ValueError("unet: input 'timestep_cond' must have a fixed width")
        found["timestep_cond"] = np.repeat(guidance_embedding(guidance_scale, width), rows, axis=0)
    return found
