"""Tokens changed before the text encoder: replaced by others, by mixes of several, or by vectors.

What comes out differs from a blend behind the encoder (text.prompt_embeds): the transformer
reads the changed token with the words around it, and passes it on to those after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.text.prompt_embeds import blend
from sdexport.runtime.text.prompt_weights import MAX_WEIGHT
from sdexport.runtime.text.tokenizer import ClipTokenizer

Lookup = Callable[[np.ndarray], np.ndarray]
"""Ids (B, S) int64 to their embeddings (B, S, width) float32."""
TokenEmbeds = Mapping[str, str | Mapping[str, float] | np.ndarray | Sequence[np.ndarray]]
"""For a word of the prompt what takes its place, wherever it stands:

    "blue"                        another word of as many tokens
    {"red": 0.5, "blue": 0.5}     the sum of several words' embeddings, each times its weight
    an array                      (width,) or (tokens, width) float32; a list of them, one for
                                  each text encoder, where there are two
"""


def check_token_embeds(given: TokenEmbeds | None) -> TokenEmbeds:
    """`given`, or an empty mapping for None.

    Raises: ValueError: no mapping of words.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(word, str) for word in given):
        raise ValueError(f"token_embeds must map words to what they become, got {_shown(given)}")
    return given


def token_mask(tokenizer: ClipTokenizer, input_ids: np.ndarray, word: str) -> np.ndarray:
    """Where a word stands: every token of every place where its tokens follow each other.

    Args:
      input_ids: (..., S) of integers.
    Returns: the same shape, bool.
    Raises: ValueError: the word is empty, or is not found.
    """
    ids = word_ids(tokenizer, word)
    mask = np.zeros(input_ids.shape, dtype=bool)
    starts = _starts(input_ids, ids, word)
    for k in range(len(ids)):
        mask[..., k : k + starts.shape[-1]] |= starts
    return mask


def replace_tokens(
    tokenizer: ClipTokenizer, input_ids: np.ndarray, words: Mapping[str, str]
) -> np.ndarray:
    """Put other tokens in the place of some: `{"cat": "dog"}`.

    Args:
      words: old to new, each of as many tokens as the other; all are replaced at once.
    Returns: input_ids of the same shape and dtype; a new array.
    Raises: ValueError: different numbers of tokens; an old word is not found.
    """
    replaced = input_ids.copy()
    for old, new in words.items():
        old_ids = word_ids(tokenizer, old)
        new_ids = _as_many(tokenizer, old, new, len(old_ids))
        starts = _starts(input_ids, old_ids, old)
        for k, number in enumerate(new_ids):
            replaced[..., k : k + starts.shape[-1]][starts] = number
    return replaced


def mixed_inputs(
    tokenizer: ClipTokenizer,
    input_ids: np.ndarray,
    token_embeds: TokenEmbeds,
    lookup: Lookup,
    encoder: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """Embeddings of the tokens as the text encoder's transformer is to read them.

    Args:
      input_ids: (B, S) int64.
      encoder: which text encoder of how many; says which array of a list is meant.
    Returns: (B, S, width) float32.
    Raises: ValueError: a word is not found, or what takes its place does not fit.
    """
    words = {old: new for old, new in token_embeds.items() if isinstance(new, str)}
    embeds = lookup(replace_tokens(tokenizer, input_ids, words))
    for word, new in token_embeds.items():
        if isinstance(new, str):
            continue
        ids = word_ids(tokenizer, word)
        starts = _starts(input_ids, ids, word)
        if isinstance(new, Mapping):
            vectors = _mix(tokenizer, word, new, lookup)
        else:
            vectors = _given(word, new, (len(ids), embeds.shape[-1]), encoder)
        for k, vector in enumerate(vectors):
            embeds[:, k : k + starts.shape[-1]][starts] = vector
    return embeds


def word_ids(tokenizer: ClipTokenizer, word: str) -> list[int]:
    """Ids of a word as it stands in a prompt; a learned word of several vectors is all of them."""
    return tokenizer.encode(tokenizer.expand(word))


def _as_many(tokenizer: ClipTokenizer, old: str, new: str, count: int) -> list[int]:
    """The ids of `new`, if they are as many as those of `old`."""
    ids = word_ids(tokenizer, new)
    if len(ids) != count:
        raise ValueError(
            f"prompt: '{old}' is {count} tokens and '{new}' {len(ids)}; "
            "only as many as there are can be replaced"
        )
    return ids


def _starts(input_ids: np.ndarray, ids: Sequence[int], word: str) -> np.ndarray:
    """Where the tokens of a word begin, (..., S - len(ids) + 1) bool."""
    last = input_ids.shape[-1] - len(ids) + 1
    starts = np.full((*input_ids.shape[:-1], max(last, 0)), bool(ids))
    if last > 0:
        for k, number in enumerate(ids):
            starts &= input_ids[..., k : k + last] == number
    if not starts.any():
        raise ValueError(f"prompt: '{word}' is not among the tokens")
    return starts


def _mix(
    tokenizer: ClipTokenizer, word: str, weights: Mapping[str, float], lookup: Lookup
) -> np.ndarray:
    """(tokens, width): of several words, token beside token."""
    if not weights:
        raise ValueError(f"token_embeds: '{word}' is given no words to be mixed of")
    count = len(word_ids(tokenizer, word))
    parts = []
    for other, weight in weights.items():
        checks.number(
            f"token_embeds: weight of '{other}' in '{word}'", weight, -MAX_WEIGHT, MAX_WEIGHT
        )
        ids = _as_many(tokenizer, word, other, count)
        parts.append(lookup(np.array([ids], dtype=np.int64))[0])
    return blend(parts, list(weights.values()))


def _given(
    word: str,
    vectors: np.ndarray | Sequence[np.ndarray],
    shape: tuple[int, int],
    encoder: tuple[int, int],
) -> np.ndarray:
    """(tokens, width): the caller's own."""
    number, encoders = encoder
    if not isinstance(vectors, np.ndarray):
        if not isinstance(vectors, (list, tuple)) or len(vectors) != encoders:
            raise ValueError(
                f"token_embeds: '{word}' must become a word, a mapping of words to weights, or an "
                f"array for each of {encoders} text encoders, got {_shown(vectors)}"
            )
        vectors = vectors[number]
    name = f"token_embeds: '{word}'"
    if shape[0] == 1 and getattr(vectors, "ndim", None) == 1:
        return checks.float_array(name, vectors, shape[1:])[None]
    return checks.float_array(name, vectors, shape)


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return shown(value)
