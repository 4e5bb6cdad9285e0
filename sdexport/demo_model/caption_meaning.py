"""Teach the demo model's text encoder what a caption says is where.

A small module, which is not part of the model, names the colour and the shape of what is at the
top, at the bottom, left, right and in the centre, the background and the size, from the text
encoder's output. The text encoder learns the order of pairs from it within 200 steps; from the
error of the predicted noise alone it did not in thousands.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from sdexport.demo_model import architecture as arch
from sdexport.demo_model import dataset
from sdexport.demo_model.training import Trainer, seeded

CAPTION_TOKENS = 24
"""Tokens that the meaning is read from; all captions are shorter."""
BATCH = 128
PAIR_SHARE = 0.75
ANCHOR_WEIGHT = 1.0
"""Weight of the squared distance of the output from what it was before, so that the UNet still
understands it."""
COLOURS, SHAPES, SIZES = (
    ("", *names) for names in (dataset.COLOURS, dataset.SHAPES, dataset.SIZES)
)
"""The answers; the first says that the caption names none."""
PLACES = {"above": (0, 1), "below": (1, 0), "left of": (2, 3), "right of": (3, 2)}
"""The places of the first and the second object: top, bottom, left, right; CENTRE is the next."""
CENTRE = 4
ANSWERS = (*(COLOURS, SHAPES) * 5, COLOURS, SIZES)
"""For each place the possible colours and shapes; then the backgrounds and the sizes."""


def meaning(caption: str) -> list[int]:
    """The right answer, as its index, to each of ANSWERS."""
    found = [0] * len(ANSWERS)

    def place(number: int, words: list[str]) -> list[str]:
        """Enter the first object of `words`; returns the words after it."""
        at = next(i for i, word in enumerate(words) if word in dataset.SHAPES)
        found[2 * number] = COLOURS.index(words[at - 1])
        found[2 * number + 1] = SHAPES.index(words[at])
        return words[: at - 1] + words[at + 1 :]

    words = caption.replace(",", " ").split()
    relation = next((name for name in PLACES if f" {name} " in caption), None)
    if relation is None:
        words = place(CENTRE, words)
    else:
        first, second = PLACES[relation]
        words = place(second, place(first, words))
    for word in words:
        if word in dataset.COLOURS:
            found[-2] = COLOURS.index(word)
        if word in dataset.SIZES:
            found[-1] = SIZES.index(word)
    return found


class MeaningHead(nn.Module):
    """Answers from the text encoder's output, by one layer of cross-attention.

    Its queries are learned: one for each place, and one for background and size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(CENTRE + 2, arch.WIDTH) * 0.5)
        self.attention = nn.MultiheadAttention(arch.WIDTH, 4, batch_first=True)
        self.norm = nn.LayerNorm(arch.WIDTH)
        self.out = nn.ModuleList(nn.Linear(arch.WIDTH, len(names)) for names in ANSWERS)

    def forward(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states (B, N, WIDTH) to the logits (B, n) for each of ANSWERS."""
        hidden = hidden[:, :CAPTION_TOKENS]
        queries = self.queries.expand(len(hidden), -1, -1)
        found, _ = self.attention(queries, hidden, hidden, need_weights=False)
        each = self.norm(queries + found)
        return [layer(each[:, number // 2]) for number, layer in enumerate(self.out)]


def meaning_loss(logits: list[torch.Tensor], right: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy; `right` is (B, len(ANSWERS))."""
    losses = [
        nn.functional.cross_entropy(each.float(), right[:, number].to(each.device))
        for number, each in enumerate(logits)
    ]
    return torch.stack(losses).mean()


def train_meaning(args: Any, text_encoder: Any, tokenizer: Any) -> nn.ModuleDict:
    """Train text encoder and head; returns both ("text_encoder", "meaning") with averaged weights.

    Args:
      args: `work`, `device`, `seed` and `meaning_steps` of the training script.
    """
    before = copy.deepcopy(text_encoder).to(args.device).eval().requires_grad_(False)
    modules = nn.ModuleDict({"text_encoder": text_encoder, "meaning": MeaningHead()})
    modules.to(args.device)
    trainer = Trainer(args.work / "meaning.pt", modules, peak=1e-3, ends=(args.meaning_steps,))

    def loss_of(step: int) -> tuple[torch.Tensor, str]:
        captions = _captions(seeded(args.seed, 10, step))
        ids = tokenizer(captions, padding="max_length", max_length=arch.MAX_LENGTH).input_ids
        input_ids = torch.tensor(ids, device=args.device)
        hidden = modules["text_encoder"](input_ids).last_hidden_state
        drift = (hidden - before(input_ids).last_hidden_state).square().mean()
        right = torch.tensor([meaning(caption) for caption in captions])
        loss = meaning_loss(modules["meaning"](hidden), right)
        note = f"loss {loss.item():.4f} drift {drift.item():.4f}"
        return loss + ANCHOR_WEIGHT * drift, note

    return trainer.run(loss_of)


def _captions(rng: np.random.Generator) -> list[str]:
    captions = []
    for _ in range(BATCH):
        if rng.random() < PAIR_SHARE:
            pair = dataset.random_pair(rng, held_out=False)
            captions.append(dataset.pair_caption(pair, int(rng.integers(3))))
        else:
            captions.append(dataset.sample_single(rng, short=rng.random() < 0.2)[1])
    return captions
