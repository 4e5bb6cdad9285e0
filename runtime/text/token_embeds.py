"""Token embeddings: words replaced by others, by blends or by vectors before the text encoder.

This differs from a blend after the encoder (blending.py): the transformer reads the changed token
in its context, and it influences the tokens after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.text.blending import blend
from sdexport.runtime.text.prompt_weights import MAX_WEIGHT
from sdexport.runtime.text.tokenizer import ClipTokenizer

Lookup = Callable[[np.ndarray], np.ndarray]
"""Token ids (B, S) int64 to their embeddings (B, S, width) float32."""
TokenEmbeds = Mapping[str, str | Mapping[str, float] | np.ndarray | Sequence[np.ndarray]]
"""Word of the prompt to its replacement, for each occurrence of the word:

    "blue"                        another word of as many tokens
    {"red": 0.5, "blue": 0.5}     the weighted sum of the embeddings of several words
    an array                      (width,) or (tokens, width) float32; with two text encoders a
                                  list of two arrays
"""


def check_token_embeds(token_embeds: TokenEmbeds | None) -> TokenEmbeds:
    """The argument itself, or an empty mapping for None.

    Raises: InvalidArgumentError: no mapping of words.
    """
    if token_embeds is None:
        return {}
    if not isinstance(token_embeds, Mapping) or not all(isinstance(w, str) for w in token_embeds):
        raise InvalidArgumentError(
            f"token_embeds must map words to their replacements, got {_shown(token_embeds)}"
        )
    return token_embeds


def token_mask(tokenizer: ClipTokenizer, input_ids: np.ndarray, word: str) -> np.ndarray:
    """The tokens of a word, at each of its occurrences.

    Args:
      input_ids: (..., S) integers.
    Returns: (..., S) bool.
    Raises: InvalidArgumentError: the word is empty or does not occur.
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
    """Replace words by others: `{"cat": "dog"}`.

    Args:
      input_ids: (..., S) integers.
      words: old word to new word, of as many tokens; all are replaced at once.
    Returns: a new array of the same shape and dtype.
    Raises: InvalidArgumentError: different numbers of tokens; an old word does not occur.
    """
    replaced = input_ids.copy()
    for old, new in words.items():
        old_ids = word_ids(tokenizer, old)
        new_ids = _ids_of_length(tokenizer, old, new, len(old_ids))
        starts = _starts(input_ids, old_ids, old)
        for k, number in enumerate(new_ids):
            replaced[..., k : k + starts.shape[-1]][starts] = number
    return replaced


def build_inputs_embeds(
    tokenizer: ClipTokenizer,
    input_ids: np.ndarray,
    token_embeds: TokenEmbeds,
    lookup: Lookup,
    encoder: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """The token embeddings that the transformer of a text encoder reads, with words replaced.

    Args:
      input_ids: (B, S) int64.
      lookup: the embeddings of token ids in this text encoder.
      encoder: index of the text encoder and their number, to choose from a list of arrays.
    Returns: (B, S, width) float32.
    Raises: InvalidArgumentError: a word does not occur; a replacement of another kind or shape.
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
            vectors = _vectors(word, new, (len(ids), embeds.shape[-1]), encoder)
        for k, vector in enumerate(vectors):
            embeds[:, k : k + starts.shape[-1]][starts] = vector
    return embeds


def word_ids(tokenizer: ClipTokenizer, word: str) -> list[int]:
    """The token ids of a word in a prompt; several for a textual inversion of several vectors."""
    return tokenizer.encode(tokenizer.expand(word))


def _ids_of_length(tokenizer: ClipTokenizer, old: str, new: str, count: int) -> list[int]:
    """The token ids of `new`, which replaces `old` and has to have as many tokens."""
    ids = word_ids(tokenizer, new)
    if len(ids) != count:
        raise InvalidArgumentError(
            f"prompt: '{old}' has {count} tokens and '{new}' has {len(ids)}; "
            "a word can be replaced only by one with as many tokens"
        )
    return ids


def _starts(input_ids: np.ndarray, ids: Sequence[int], word: str) -> np.ndarray:
    """Where a word begins, (..., S - len(ids) + 1) bool."""
    last = input_ids.shape[-1] - len(ids) + 1
    starts = np.full((*input_ids.shape[:-1], max(last, 0)), bool(ids))
    if last > 0:
        for k, number in enumerate(ids):
            starts &= input_ids[..., k : k + last] == number
    if not starts.any():
        raise InvalidArgumentError(f"the prompt does not contain {shown(word)}")
    return starts


def _mix(
    tokenizer: ClipTokenizer, word: str, weights: Mapping[str, float], lookup: Lookup
) -> np.ndarray:
    """(tokens, width): the weighted sum of several words."""
    if not weights:
        raise InvalidArgumentError(f"token_embeds: '{word}' must map to at least one word")
    count = len(word_ids(tokenizer, word))
    parts = []
    for other, weight in weights.items():
        checks.number(
            f"token_embeds: weight of '{other}' in '{word}'", weight, -MAX_WEIGHT, MAX_WEIGHT
        )
        ids = _ids_of_length(tokenizer, word, other, count)
        parts.append(lookup(np.array([ids], dtype=np.int64))[0])
    return blend(parts, list(weights.values()))


def _vectors(
    word: str,
    vectors: np.ndarray | Sequence[np.ndarray],
    shape: tuple[int, int],
    encoder: tuple[int, int],
) -> np.ndarray:
    """(tokens, width): the caller's array for this text encoder."""
    number, encoders = encoder
    if not isinstance(vectors, np.ndarray):
        if not isinstance(vectors, (list, tuple)) or len(vectors) != encoders:
            raise InvalidArgumentError(
                f"token_embeds: '{word}' must map to a word, to a mapping of words to weights, or "
                f"to an array for each of {encoders} text encoders, got {_shown(vectors)}"
            )
        vectors = vectors[number]
    name = f"token_embeds: '{word}'"
    if shape[0] == 1 and isinstance(vectors, np.ndarray) and vectors.ndim == 1:
        return checks.float_array(name, vectors, shape[1:])[None]
    return checks.float_array(name, vectors, shape)


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return shown(value)
