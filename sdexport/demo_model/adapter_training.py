"""What the training of the demo model's adapters shares: captioned scenes and their latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPTokenizer

from sdexport.demo_model import architecture as arch
from sdexport.demo_model import dataset
from sdexport.demo_model.dataset import Scene
from sdexport.demo_model.noisy_latents import (
    BLANK_SHARE,
    NOISY_SHARE,
    NoisyLatents,
    draw_noise,
)
from sdexport.demo_model.training import encode_images, seeded

BATCH = 32
OUTLINED_BLANK = 0.8
"""The share of noisy samples that are noise alone, where there are outlines."""


class AdapterExamples:
    """Scenes, half of them with one object and half with two, as noisy latents with captions.

    Args:
      path: file for the latents, which are computed once.
      model: the folder of the demo model, for its tokenizer.
      vae: the demo model's.
      seed: of the scenes.
      image_of: draws a scene, (128, 128, 3) uint8.
      outlined: whether the model is shown outlines as well. Then most noisy samples are noise
        alone, and others show the objects elsewhere, so that the outlines say where they are;
        otherwise none with one object is noise alone, see draw_noise.
    """

    def __init__(
        self,
        path: Path,
        model: Path,
        vae: Any,
        *,
        count: int,
        seed: tuple[int, ...],
        image_of: Callable[[Scene], np.ndarray],
        outlined: bool = False,
    ) -> None:
        rng = seeded(*seed)
        examples = [_sample(rng, pair=bool(number % 2)) for number in range(count)]
        self.scenes = [scene for scene, _, _ in examples]
        others = [scene for _, scene, _ in examples] if outlined else []
        data = dict(torch.load(path, weights_only=True)) if path.exists() else {}
        if len(data.get("moments", ())) != len(self.scenes) + len(others):
            tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
            captions = [caption for _, _, caption in examples]
            ids = tokenizer(captions, padding="max_length", max_length=arch.MAX_LENGTH).input_ids
            moments = encode_images(vae, map(image_of, [*self.scenes, *others]))
            data = {"moments": moments, "ids": torch.tensor(ids)}
            torch.save(data, path)
        scaled = vae.config.scaling_factor * data["moments"]
        self._mean, self._std = scaled.chunk(2, dim=1)
        self._outlined = outlined
        self._input_ids = data["ids"]
        pairs = torch.tensor([len(scene.shapes) > 1 for scene in self.scenes])
        self._may_be_blank = pairs | outlined
        self._blank_share = OUTLINED_BLANK if outlined else BLANK_SHARE

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, NoisyLatents]:
        """The numbers of BATCH scenes, and their noisy latents."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        numbers = rng.integers(0, len(self.scenes), BATCH)
        rows = torch.from_numpy(numbers)

        def latents(rows: torch.Tensor) -> torch.Tensor:
            mean, std = self._mean[rows], self._std[rows]
            return mean + std * torch.randn(mean.shape, generator=generator)

        return numbers, draw_noise(
            latents(rows),
            self._input_ids[rows],
            generator,
            may_be_blank=self._may_be_blank[rows],
            elsewhere=latents(rows + len(self.scenes)) if self._outlined else None,
            noisy_share=NOISY_SHARE if self._outlined else 0.0,
            blank_share=self._blank_share,
        )


class Outlines:
    """The outlines of scenes, as the ControlNet takes them."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        drawn = [dataset.render_outlines(scene)[..., 0] > 127 for scene in scenes]
        self._bits = np.packbits(np.stack(drawn), axis=-1)

    def draw(self, numbers: np.ndarray) -> torch.Tensor:
        """Those of some scenes, by their numbers: (B, 3, 128, 128) float32, 0 or 1."""
        lines = torch.from_numpy(np.unpackbits(self._bits[numbers], axis=-1)).float()
        return lines[:, None].expand(-1, 3, -1, -1)


def _sample(rng: np.random.Generator, *, pair: bool) -> tuple[Scene, Scene, str]:
    """Two scenes of the same caption, and the caption."""
    if pair:
        wanted = dataset.random_pair(rng, held_out=False)
        caption = dataset.pair_caption(wanted, int(rng.integers(len(dataset.PAIR_WORDINGS))))
        return dataset.place_pair(wanted, rng), dataset.place_pair(wanted, rng), caption
    single, caption = dataset.captioned_single(rng, short=rng.random() < 0.2)
    return dataset.place_single(single, rng), dataset.place_single(single, rng), caption
