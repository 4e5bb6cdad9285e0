"""What the UNet is told of the prompts: embeddings of texts, or the caller's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engines import Session
from runtime import checks
from runtime import prompt as prompt_text
from runtime.components import chunks, finite
from runtime.tokenizer import ClipTokenizer

Embeds = np.ndarray | Callable[[int, int], np.ndarray]
"""Embeddings for the whole run, or for step i of so many."""


def encode(
    tokenizer: ClipTokenizer,
    text_encoder: Session,
    texts: Sequence[str],
    *,
    prompt_weights: bool = False,
    clip_skip: int = 0,
    max_batch: int | None = None,
) -> np.ndarray:
    """Embeddings of texts, (B, n, width) float32.

    Args:
      text_encoder: input_ids -> last_hidden_state, and an output for each clip_skip that it has.
      max_batch: rows of 77 tokens that the encoder is given at once.
    Raises: ValueError: see Pipeline.encode. EngineError: the encoder failed or gave numbers that
      are not finite.
    """
    output = text_output(text_encoder, clip_skip)
    dtype = text_encoder.inputs[0].dtype

    def hidden_states(input_ids: np.ndarray) -> np.ndarray:
        parts = [
            text_encoder.run({"input_ids": input_ids[rows].astype(dtype)})[output]
            for rows in chunks(len(input_ids), max_batch)
        ]
        return finite(np.concatenate(parts), "text_encoder", "the prompt")

    how = prompt_text.encode_weighted if prompt_weights else prompt_text.encode_plain
    return how(tokenizer, hidden_states, texts)


def text_output(text_encoder: Session, clip_skip: int) -> str:
    """Name of the encoder's output without so many of its last layers.

    Raises: ValueError: the encoder has no such output.
    """
    names = {f"clip_skip.{n}": n for n in range(1, 12)}
    able = [0, *(names[spec.name] for spec in text_encoder.outputs if spec.name in names)]
    if isinstance(clip_skip, bool) or not isinstance(clip_skip, int) or clip_skip not in able:
        raise ValueError(
            f"clip_skip must be one of {', '.join(map(str, able))} with this package, "
            f"got {checks.shown(clip_skip)}"
        )
    return f"clip_skip.{clip_skip}" if clip_skip else "last_hidden_state"


def embeds(
    encode: Callable[[list[str]], np.ndarray],
    prompts: list[str],
    negatives: list[str] | None,
    prompt_embeds: Embeds | None = None,
    negative_prompt_embeds: np.ndarray | None = None,
) -> Embeds:
    """What `denoise` asks for: one row for each prompt, after one for each negative if there are.

    Args:
      negatives: None if no unconditional pass is run at all.
      prompt_embeds, negative_prompt_embeds: take the place of the texts.
    Raises: ValueError: embeddings do not fit.
    """
    if prompt_embeds is None and negative_prompt_embeds is None:
        return encode([*(negatives or ()), *prompts])
    count, negative = len(prompts), None
    positive = encode(prompts) if prompt_embeds is None else prompt_embeds
    if negatives is not None:
        given = negative_prompt_embeds
        negative = rows(
            "negative_prompt_embeds", encode(negatives) if given is None else given, count
        )
    if callable(positive):
        return EachStep(positive, negative, count)
    return joined(negative, rows("prompt_embeds", positive, count))


class EachStep:
    """Embeddings that change over the steps, joined with the negative ones."""

    def __init__(
        self,
        positive: Callable[[int, int], np.ndarray],
        negative: np.ndarray | None,
        count: int,
    ) -> None:
        self._positive, self._negative, self._count = positive, negative, count
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, i: int, steps: int) -> np.ndarray:
        """The same object as long as the function gives the same one."""
        given = self._positive(i, steps)
        if self._last is None or self._last[0] is not given:
            own = rows("prompt_embeds", given, self._count)
            self._last = given, joined(self._negative, own)
        return self._last[1]


def rows(name: str, given: np.ndarray, count: int) -> np.ndarray:
    """Embeddings as one row for each picture."""
    given = checks.floats(name, given, (None, None, None))
    if not given.size or count % len(given):
        raise ValueError(f"{name}: expected 1 or {count} rows, got {given.shape}")
    return np.repeat(given, count // len(given), axis=0)


def joined(negative: np.ndarray | None, positive: np.ndarray) -> np.ndarray:
    if negative is None:
        return positive
    if negative.shape[1:] != positive.shape[1:]:
        raise ValueError(
            f"negative_prompt_embeds {negative.shape} and prompt_embeds {positive.shape} "
            "must have rows of one shape"
        )
    return np.concatenate([negative, positive])
