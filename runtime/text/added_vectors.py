"""Words with vectors of their own that a package's tokenizer and text encoder do not have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.text.token_embeds import Lookup
from sdexport.runtime.text.tokenizer import ClipTokenizer

Vectors = Mapping[str, np.ndarray]
"""By text encoder, (n, width) float32: the word is n tokens, `word`, `word_1`, `word_2`."""


@dataclass(frozen=True, eq=False)
class AddedVectors:
    """The words of one text encoder.

    tokenizer: with tokens for them, whose ids the text encoder's table does not have.
    first: the first of these ids. vectors: of each id, (ids, width) float32.
    """

    tokenizer: ClipTokenizer
    first: int
    vectors: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, tokenizer: ClipTokenizer, encoder: str, words: Mapping[str, Vectors]) -> Self:
        """The words of a text encoder.

        Args:
          tokenizer: the text encoder's own.
        """
        names = [token for word, found in words.items() for token in tokens_of(word, found)]
        rows = np.concatenate([found[encoder] for found in words.values()])
        return cls(tokenizer.with_tokens(names), tokenizer.vocab_size, rows)

    def occur(self, input_ids: np.ndarray) -> bool:
        """Whether there is one of the words."""
        return bool((input_ids >= self.first).any())

    def known(self, input_ids: np.ndarray) -> np.ndarray:
        """The ids, with another word's in place of these: where a prompt ends stays the same."""
        ends = (self.tokenizer.bos_id, self.tokenizer.eos_id, self.tokenizer.pad_id)
        other = next(number for number in range(len(ends) + 1) if number not in ends)
        return np.where(input_ids >= self.first, other, input_ids)

    def lookup(self, table: Lookup) -> Lookup:
        """The embeddings of all ids.

        Args:
          table: the text encoder's own.
        """

        def found(input_ids: np.ndarray) -> np.ndarray:
            embeds = table(self.known(input_ids))
            added = input_ids >= self.first
            embeds[added] = self.vectors[input_ids[added] - self.first]
            return embeds

        return found

    def reject(self, input_ids: np.ndarray) -> None:
        """Raises: InvalidArgumentError: one of the words is there."""
        if self.occur(input_ids):
            token = self.tokenizer.token(int(input_ids[input_ids >= self.first][0]))
            raise InvalidArgumentError(
                f"prompt: {shown(token)}, which is bundled with a LoRA, cannot be in a prompt of "
                "the style compel with a weight below 1"
            )


def tokens_of(word: str, vectors: Vectors) -> list[str]:
    """The tokens of a word, one for each vector."""
    count = len(next(iter(vectors.values())))
    return [word, *(f"{word}_{i}" for i in range(1, count))]


def usable(word: str, vectors: Vectors, tokenizers: Iterable[ClipTokenizer]) -> str | None:
    """Why a word cannot be added; None if it can."""
    tokens = tokens_of(word, vectors)
    if not word.strip() or not word.isprintable():
        return "it is not a word for a prompt"
    for tokenizer in tokenizers:
        if exists := [token for token in tokens if token in tokenizer]:
            return f"there is a token {shown(exists[0])} already"
        extended = tokenizer.with_tokens(tokens)
        for number, token in enumerate(tokens):
            if extended.encode(token) != [tokenizer.vocab_size + number]:
                return f"the tokenizer cannot tell {shown(token)} from other words"
    return None
