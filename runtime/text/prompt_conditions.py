"""The embeddings of a batch in each step: prompts that change, and prompts of several parts.

A prompt has parts (prompt_parts.py), each with a text that may change from step to step
(prompt_editing.py) and a weight. All texts are encoded at once, before the first step; then each
step's embeddings are chosen from them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sdexport.runtime.text.prompt_embeds import (
    EmbedArguments,
    Embeds,
    Encode,
    Text,
    TextEmbeds,
    prepare_embeds,
)
from sdexport.runtime.text.prompt_styles import (
    AUTOMATIC1111,
    COMFYUI,
    read_tags,
    warn_about_unread_syntax,
)
from sdexport.runtime.text.prompt_texts import (
    StepRange,
    as_tuple,
    edited,
    parts_of,
    require_constant,
    texts_of_steps,
    warn_about_late_changes,
    warn_about_parts,
)

MAX_REPEATS = 4
"""How often embeddings may be repeated to be as long as others. Attention over repeated tokens is
the same, so rows of different lengths can be one batch."""


@dataclass(frozen=True, eq=False)
class ConditionRows:
    """The rows of the denoiser's batch in one step.

    Attributes:
      embeds: for each row (n, width) float32; n may differ.
      images: for each row the index of its image.
      weights: for each row the weight of its prediction; None for unconditional rows.
      pooled: (rows, width) float32 for models with pooled embeddings.
    """

    embeds: tuple[np.ndarray, ...]
    images: tuple[int, ...]
    weights: tuple[float | None, ...]
    pooled: np.ndarray | None = None

    def parts(self, count: int) -> list[list[float]]:
        """For each of `count` images the weights of the parts of its prompt."""
        weights: list[list[float]] = [[] for _ in range(count)]
        for image, weight in zip(self.images, self.weights, strict=True):
            if weight is not None:
                weights[image].append(weight)
        return weights


_Key = tuple[Text, int]
"""A text, and the variant of the text encoders that encodes it."""


@dataclass(frozen=True, eq=False)
class _Row:
    """A row of every step: for each step that runs its embeddings (n, width) and pooled ones."""

    image: int
    weight: float | None
    embeds: Sequence[np.ndarray]
    pooled: Sequence[np.ndarray] | None


class PromptConditions:
    """The rows of the denoiser's batch in each step.

    Args:
      rows: the unconditional rows first.
      count: of images.
      steps: of the run.
    """

    def __init__(self, rows: Sequence[_Row], count: int, steps: StepRange) -> None:
        self._rows, self._count, self._steps = rows, count, steps
        self._last: tuple[tuple[int, ...], ConditionRows] | None = None

    @property
    def has_unconditional(self) -> bool:
        """Whether there is an unconditional row for each image."""
        return self._rows[0].weight is None

    @property
    def pooled(self) -> np.ndarray | None:
        """The pooled embeddings of the first step, one row for each image, or two."""
        firsts: dict[tuple[int, bool], np.ndarray] = {}
        for row in self._rows:
            if row.pooled is None:
                return None
            firsts.setdefault((row.image, row.weight is None), row.pooled[0])
        return np.stack(list(firsts.values()))

    @property
    def constant(self) -> np.ndarray | None:
        """The embeddings (B or 2B, n, width) if no prompt needs more; else None."""
        weights = [row.weight for row in self._rows if row.weight is not None]
        changes = any(each is not row.embeds[0] for row in self._rows for each in row.embeds)
        if changes or weights != [1] * self._count:
            return None
        return _stacked([row.embeds[0] for row in self._rows])

    def __call__(self, call: int, calls: int) -> ConditionRows:
        """The rows of a call of the denoiser; the same object while nothing changes."""
        step = self._steps.number(call) - 1
        key = tuple(id(row.embeds[step]) for row in self._rows)
        if self._last is None or self._last[0] != key:
            pooled = [row.pooled[step] for row in self._rows if row.pooled is not None]
            rows = ConditionRows(
                tuple(row.embeds[step] for row in self._rows),
                tuple(row.image for row in self._rows),
                tuple(row.weight for row in self._rows),
                np.stack(pooled) if pooled else None,
            )
            self._last = key, rows
        return self._last[1]


def prepare_prompts(
    encode: Encode,
    prompts: Sequence[Text],
    negatives: Sequence[Text],
    arguments: EmbedArguments,
    steps: StepRange,
    *,
    style: str,
    guided: bool,
    zeros: bool = False,
    variants: Sequence[int] = (),
) -> tuple[Embeds | PromptConditions, np.ndarray | None]:
    """The embeddings that `denoise` takes, from texts in a prompt style and from arrays.

    Args:
      negatives: one for each prompt.
      arguments: replace the embeddings of the texts.
      style: one of prompt_styles.STYLES.
      guided: whether there is an unconditional pass.
      zeros: the negative embeddings are zeros, unless they are among the arguments.
      variants: for each image that of the text encoders; default the first one for all.
    Returns: an array or a function, see `prepare_embeds`, or PromptConditions where prompts need
      more than that; and the pooled embeddings of the first step, if the model has them.
    Raises: InvalidArgumentError: embeddings whose shapes do not fit; embeddings together with a
      text that changes from step to step or has several parts.
    """
    count = len(prompts)
    variants = variants or [0] * count
    warn_about_unread_syntax(itertools.chain(*map(as_tuple, [*prompts, *negatives])), style)
    texts = read_tags([*prompts, *negatives], style)
    prompts, negatives = texts[:count], texts[count:]
    if arguments.prompt_embeds is None and arguments.negative_prompt_embeds is None:
        if style in (AUTOMATIC1111, COMFYUI):
            conditions = prompt_conditions(
                encode,
                prompts,
                negatives,
                steps,
                style=style,
                guided=guided,
                zeros=zeros,
                variants=variants,
            )
            constant = conditions.constant
            return (conditions if constant is None else constant), conditions.pooled
    else:
        require_constant(prompts, negatives, style, "embeddings of the other prompt")
    used = negatives if guided else None
    return prepare_embeds(encode, prompts, used, arguments, zeros=zeros, variants=variants)


def needs_negatives(embeds: Embeds | PromptConditions) -> bool:
    """Whether there is an unconditional row for each image, whatever the guidance."""
    return isinstance(embeds, PromptConditions) and embeds.has_unconditional


def equal_lengths(embeds: list[np.ndarray]) -> list[np.ndarray]:
    """The embeddings (n, width), repeated to the same n if that takes at most MAX_REPEATS each."""
    length = math.lcm(*(len(each) for each in embeds))
    if any(length > MAX_REPEATS * len(each) for each in embeds):
        return embeds
    return [np.tile(each, (length // len(each), 1)) for each in embeds]


def joined(found: TextEmbeds, style: str) -> np.ndarray:
    """The embeddings of texts of different lengths as one array (B, n, width).

    In the styles of programs that run texts of different lengths apart, the shorter ones are
    repeated if possible, which gives the same image; otherwise they have empty rows at the end.
    """
    if style in (AUTOMATIC1111, COMFYUI) and found.lengths:
        pairs = zip(found.embeds, found.lengths, strict=True)
        same = _stacked([each[:length] for each, length in pairs])
        return found.embeds if same is None else same
    return found.embeds


def _stacked(embeds: list[np.ndarray]) -> np.ndarray | None:
    """The embeddings in one array, repeated to the same length; None if that is not possible."""
    embeds = equal_lengths(embeds)
    return np.stack(embeds) if len({len(each) for each in embeds}) == 1 else None


def needs_unconditional(weights: Sequence[float]) -> bool:
    """Whether a composition of predictions needs the unconditional one, whatever the guidance.

    Their sum is uncond + sum of weight * (cond - uncond), from which it cancels if the weights add
    up to 1.
    """
    return abs(sum(weights) - 1) > 1e-6


def prompt_conditions(
    encode: Encode,
    prompts: Sequence[Text],
    negatives: Sequence[Text],
    steps: StepRange,
    *,
    style: str,
    guided: bool,
    zeros: bool = False,
    variants: Sequence[int],
) -> PromptConditions:
    """Encode the prompts of a batch, whatever their syntax.

    Args:
      negatives: one for each prompt.
      style: "automatic1111" reads alternation, editing and AND; others have constant texts.
      guided: whether there is an unconditional pass.
      zeros: the negative embeddings are zeros.
      variants: for each image that of the text encoders.
    Raises: InvalidArgumentError: texts that are not valid Unicode, and what `encode` raises.
    """
    parts = [parts_of(prompt, style) for prompt in prompts]
    negative = [edited(text, style) for text in negatives]
    if style == AUTOMATIC1111:
        warn_about_parts(prompts, negatives, parts)
    guided = guided or any(needs_unconditional([p.weight for p in image]) for image in parts)
    if not guided or zeros:
        negative = []
    everything = [*negative, *(part.text for part in itertools.chain(*parts))]
    warn_about_late_changes(everything, steps)
    own = [*variants[: len(negative)]]
    own += [variants[i] for i, image in enumerate(parts) for _ in image]
    texts = [
        [(text, variant) for text in texts_of_steps(each, steps)]
        for each, variant in zip(everything, own, strict=True)
    ]
    below = list(dict.fromkeys(itertools.chain(*texts[: len(negative)])))
    above = list(dict.fromkeys(itertools.chain(*texts[len(negative) :])))
    both = [*below, *above]
    found = encode([text for text, _ in both], len(below), [variant for _, variant in both])
    rows = [
        _row(i, None, texts[i], found, {key: k for k, key in enumerate(below)})
        for i in range(len(negative))
    ]
    place = {key: len(below) + k for k, key in enumerate(above)}
    numbers = itertools.count(len(negative))
    for i, image in enumerate(parts):
        rows += _equally_long(
            [_row(i, part.weight, texts[next(numbers)], found, place) for part in image]
        )
    if guided and zeros:
        rows = [*_zeros(rows, len(prompts)), *rows]
    return PromptConditions(rows, len(prompts), steps)


def _row(
    image: int,
    weight: float | None,
    texts: Sequence[_Key],
    found: TextEmbeds,
    place: Mapping[_Key, int],
) -> _Row:
    """A row of every step, as long as the longest of its texts needs."""
    used = {text: place[text] for text in texts}
    length = max(found.lengths[k] for k in used.values())
    embeds = {text: found.embeds[k, :length] for text, k in used.items()}
    pooled = None
    if found.pooled is not None:
        rows = {text: found.pooled[k] for text, k in used.items()}
        pooled = [rows[text] for text in texts]
    return _Row(image, weight, [embeds[text] for text in texts], pooled)


def _equally_long(rows: list[_Row]) -> list[_Row]:
    """The parts of one prompt, the shorter ones extended by their last vector as in the web UI."""
    length = max(len(row.embeds[0]) for row in rows)
    return [_extended(row, length) for row in rows]


def _extended(row: _Row, length: int) -> _Row:
    missing = length - len(row.embeds[0])
    if not missing:
        return row
    unique = {id(each): each for each in row.embeds}
    longer = {
        key: np.concatenate([each, np.repeat(each[-1:], missing, axis=0)])
        for key, each in unique.items()
    }
    return replace(row, embeds=[longer[id(each)] for each in row.embeds])


def _zeros(rows: Sequence[_Row], count: int) -> list[_Row]:
    """An unconditional row of zeros for each image."""
    firsts = {row.image: row for row in reversed(rows)}
    found = []
    for image in range(count):
        embeds = np.zeros_like(firsts[image].embeds[0])
        pooled = firsts[image].pooled
        steps = len(firsts[image].embeds)
        zero = None if pooled is None else [np.zeros_like(pooled[0])] * steps
        found.append(_Row(image, None, [embeds] * steps, zero))
    return found
