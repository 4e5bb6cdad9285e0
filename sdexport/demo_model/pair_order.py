"""Teach the demo model the order of pairs: the last stage of its training.

`python -m sdexport.demo_model.pair_order --work DIR --start MODEL` runs this stage by itself.

The first stages leave a model that draws both objects of a pair, in either order: even the noisiest
latents of this schedule show which object is where, so the caption tells it nothing new, and at
those timesteps an error in the layout hardly counts in the loss. Hence, in this stage,

- a share of the noisiest samples of pairs is noise alone, as in the first step of the generation,
  and only the caption says what to draw;
- at the noisiest timesteps the error counts more;
- pairs are drawn together with their objects in each other's place, and the same noise;
- the text encoder learns what a caption says is where first, see `caption_meaning`;
- for one object, and without a caption, the model learns to predict what it did before this stage:
  otherwise it draws small objects less reliably afterwards.

The order is right after a few hundred steps; the rest of the stage brings back what was right for
one object.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import CLIPTokenizer

from sdexport.demo_model import MODEL_DIR, dataset
from sdexport.demo_model import architecture as arch
from sdexport.demo_model.caption_meaning import SIZES, meaning, meaning_loss, train_meaning
from sdexport.demo_model.noisy_latents import (
    NoisyLatents,
    draw_noise,
    predicted_latents,
    weighted_error,
)
from sdexport.demo_model.training import (
    Trainer,
    add_common_arguments,
    cycle_of,
    encode_images,
    read_model,
    seeded,
    write_model,
)
from sdexport.engines.files import write_atomically

BATCH = 64
PAIR_SHARE = 0.75
"""Share of pairs among the scenes that are encoded."""


class Phase(NamedTuple):
    """One part of this stage, with BATCH examples a step.

    Attributes:
      peak: the highest learning rate.
      pairs: how many of the examples.
      small: how many of the examples are one small object, which is learned from its scene.
      all_blank: whether the samples of one object and without a caption may be noise alone too.
    """

    steps: int
    peak: float
    pairs: int
    small: int = 0
    all_blank: bool = False


PHASES = (Phase(1100, 5e-4, 32), Phase(700, 2.5e-4, 16))
"""The order is learned first; then what the model draws of one object comes back."""
ENDINGS = {
    "small": Phase(400, 2.5e-4, 8, small=44),
    "blank": Phase(400, 2.5e-4, 16, all_blank=True),
}
"""Two ways to go on from there. The model is the mean of the weights after PHASES and after each of
these: it draws more prompts right than any of the three. Source: Wortsman et al. 2022, arXiv
2203.05482."""


def main() -> None:
    """Train this stage, or resume it, and write the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m sdexport.demo_model.pair_order"
    )
    add_common_arguments(parser, MODEL_DIR)
    parser.add_argument("--start", type=Path, required=True, help="model of the first stages")
    parser.add_argument(
        "--keep", type=Path, help="model whose predictions are learned; START by default"
    )
    add_arguments(parser)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train(args, args.start, args.keep or args.start)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this stage."""
    parser.add_argument("--order-scenes", type=int, default=16384)
    parser.add_argument("--meaning-steps", type=int, default=300, help="of the text encoder alone")


def train(
    args: argparse.Namespace,
    start: Path,
    keep: Path,
    phases: Sequence[Phase] = PHASES,
    endings: Mapping[str, Phase] = ENDINGS,
) -> None:
    """Teach the model in folder `start` the order of pairs, and write it to `args.output`.

    Args:
      keep: folder of the model whose predictions for one object are learned.
    """
    torch.manual_seed(args.seed + 2)
    before = Before(keep, args.device)
    vae, unet, encoder = read_model(start)
    tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
    data = encode_examples(args, vae.to(args.device).eval(), tokenizer)
    examples = OrderExamples(data, vae.config.scaling_factor)
    modules = train_meaning(args, encoder, tokenizer)
    modules = nn.ModuleDict({"unet": unet, **modules}).to(args.device).requires_grad_(True)

    def run(path: Path, phases: Sequence[Phase]) -> dict[str, torch.Tensor]:
        """The averaged weights after some phases."""
        ends = tuple(itertools.accumulate(phase.steps for phase in phases))
        peaks = [phase.peak for phase in phases]
        trainer = Trainer(path, modules, peak=peaks, ends=ends)

        def loss_of(step: int) -> tuple[torch.Tensor, str]:
            phase = phases[cycle_of(step, ends)]
            batch, right = examples.draw(seeded(args.seed, 5, step), phase)
            targets = before.as_targets(batch, first=phase.pairs + phase.small)
            return order_loss(modules, targets, right, phase.pairs, args.device)

        return trainer.run(loss_of).state_dict()

    common = args.work / "order.pt"
    found = [run(common, phases)]
    for name, ending in endings.items():
        path = args.work / f"order_{name}.pt"
        if not path.exists():
            write_atomically(path, common.read_bytes())
        found.append(run(path, [*phases, ending]))
    modules.load_state_dict(mean_weights(found))
    write_model(
        args.output,
        start / "tokenizer",
        vae,
        modules["unet"].eval(),
        modules["text_encoder"].eval(),
    )


def mean_weights(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each floating-point weight; other values are those of the first."""
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


class Before:
    """The model before this stage."""

    def __init__(self, folder: Path, device: str) -> None:
        _, unet, text_encoder = read_model(folder)
        self._unet, self._text_encoder = unet.to(device).eval(), text_encoder.to(device).eval()
        self._device = device

    @torch.no_grad()
    def as_targets(self, batch: NoisyLatents, first: int) -> NoisyLatents:
        """A batch whose noise is predicted by the model from row `first` on and without caption."""
        rows = batch.without_caption | (torch.arange(len(batch.sample)) >= first)
        with torch.autocast(self._device, torch.bfloat16):
            hidden = self._text_encoder(batch.input_ids[rows].to(self._device)).last_hidden_state
            sample, timesteps = (x[rows].to(self._device) for x in (batch.sample, batch.timesteps))
            predicted = self._unet(sample, timesteps, hidden).sample
        noise = batch.noise.clone()
        noise[rows] = predicted.float().cpu()
        return batch._replace(noise=noise)


def order_loss(
    modules: Any, batch: NoisyLatents, right: torch.Tensor, pairs: int, device: str
) -> tuple[torch.Tensor, str]:
    """The loss of one step, and a note with its parts.

    The note's `order` is the share of pairs for which the image that is predicted from the caption
    and noise alone is closer to the caption's than to the one with swapped objects.

    Args:
      right: the meanings of the captions (B, len(ANSWERS)).
      pairs: how many rows have two objects; they come first.
    """
    with torch.autocast(device, torch.bfloat16):
        hidden = modules["text_encoder"](batch.input_ids.to(device)).last_hidden_state
        predicted = modules["unet"](batch.sample.to(device), batch.timesteps.to(device), hidden)
        answers = modules["meaning"](hidden)
    noise = predicted.sample.float().cpu()
    error = weighted_error(noise, batch)
    shown = ~batch.without_caption
    answer_error = meaning_loss([each[shown] for each in answers], right[shown])
    order = in_order(predicted_latents(noise, batch)[:pairs], batch.latents[:pairs])
    order = order[(batch.blank & shown)[:pairs:2]]
    note = (
        f"error {error.item():.4f} mse {(noise - batch.noise).square().mean().item():.4f} "
        f"meaning {answer_error.item():.4f} order {order.float().mean().item():.2f}"
    )
    return error + answer_error, note


@torch.no_grad()
def in_order(predicted: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Whether each two predictions are closer to their own latents than to the other's.

    Args:
      predicted, latents: of pairs alone (P, 4, 16, 16).
    Returns: (P / 2) bool.
    """

    def total(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().mean(dim=(1, 2, 3)).view(-1, 2).sum(dim=1)

    other = latents.view(-1, 2, *latents.shape[1:]).flip(1).flatten(0, 1)
    return total(predicted, latents) < total(predicted, other)


def encode_examples(args: argparse.Namespace, vae: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Encode captioned scenes, once: PAIR_SHARE of them are swapped pairs.

    Returns: `moments`, posterior mean and deviation (N, 8, 16, 16), `ids`, the token ids of two
      captions (N, 2, 77), their `meanings`, and `pairs`, the number of pairs, which come first.
    """
    path = args.work / "order_latents.pt"
    if not path.exists():
        rng = seeded(args.seed, 4)
        pairs = int(args.order_scenes * PAIR_SHARE) // 2 * 2
        scenes: list[dataset.Scene] = []
        captions: list[str] = []
        while len(scenes) < pairs:
            for scene, statements in dataset.sample_swapped_pairs(rng):
                scenes.append(scene)
                captions += [statements[0], statements[-1]]
        while len(scenes) < args.order_scenes:
            scene, caption = dataset.sample_single(rng, short=rng.random() < 0.2)
            scenes.append(scene)
            captions += [caption, caption]
        ids = tokenizer(captions, padding="max_length", max_length=arch.MAX_LENGTH).input_ids
        data = {
            "moments": encode_images(vae, map(dataset.render, scenes)),
            "ids": torch.tensor(ids).view(len(scenes), 2, -1),
            "meanings": torch.tensor([meaning(c) for c in captions]).view(len(scenes), 2, -1),
            "pairs": torch.tensor(pairs),
        }
        torch.save(data, path)
    return dict(torch.load(path, weights_only=True))


class OrderExamples:
    """Draws noisy latents with captions.

    Args:
      data: see encode_examples.
      scale: the factor that gives the latents a variance of 1.
    """

    def __init__(self, data: dict[str, torch.Tensor], scale: float) -> None:
        self._mean, self._std = (scale * data["moments"]).chunk(2, dim=1)
        self._input_ids, self._meanings = data["ids"], data["meanings"]
        self._pairs = int(data["pairs"])
        called_small = (data["meanings"][..., -1] == SIZES.index("small")).all(dim=1)
        self._small = called_small.nonzero()[:, 0].numpy()

    def draw(self, rng: np.random.Generator, phase: Phase) -> tuple[NoisyLatents, torch.Tensor]:
        """The BATCH examples of one step, and the captions' meanings.

        The pairs come first; rows 2k and 2k+1 of them are swapped, and have the same noise. Those
        that are small by request are next.
        """
        pairs = phase.pairs
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        first = 2 * rng.integers(0, self._pairs // 2, pairs // 2)
        swapped = np.stack([first, first + 1], axis=1).ravel()
        singles = rng.integers(self._pairs, len(self._mean), BATCH - pairs)
        singles[: phase.small] = rng.choice(self._small, phase.small)
        rows = torch.from_numpy(np.concatenate([swapped, singles]))
        mean, std = self._mean[rows], self._std[rows]
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        which = torch.randint(2, rows.shape, generator=generator)
        owner = torch.arange(len(rows))
        owner[1:pairs:2] -= 1
        batch = draw_noise(
            latents,
            self._input_ids[rows, which],
            generator,
            owner=owner,
            may_be_blank=(torch.arange(len(rows)) < pairs) | phase.all_blank,
            blank_without_caption=phase.all_blank,
        )
        return batch, self._meanings[rows, which]


if __name__ == "__main__":
    main()
