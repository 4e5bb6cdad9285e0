"""CLIP's byte-pair tokenizer, equal to the Rust tokenizer of transformers for every string.

Source: Radford et al. 2021, arXiv 2103.00020, section 2.4; Sennrich et al. 2016, arXiv 1508.07909.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from sdexport.runtime.text import bpe, normalization, tokenizer_files
from sdexport.runtime.text.added_tokens import AddedToken, Splitter, assign_ids
from sdexport.runtime.text.tokenizer_files import BOS, DEFAULT_LENGTH, EOS

logger = logging.getLogger(__name__)

_CACHED_WORDS = 20_000
_SHOWN = 200


class ClipTokenizer:
    """Text to token ids.

    Args:
      vocab: token to id, byte symbols and merged tokens, the last of a word ending in `</w>`.
      merges: pairs of tokens as "left right", the most frequent first.
      max_length: length of a row of ids, specials included.
      bos_token, eos_token: frame a row.
      pad_token: fills the rows; SD 1.x repeats the end token, SD 2.x uses "!".
      unk_token: stands for what is not in the vocabulary.
      added_tokens: split out before byte-pair encoding; default those four, if they are written
        out in a text. So "!" in a prompt for SD 2.x is the pad token, as in transformers.
    Raises: ValueError: special tokens are missing from the vocabulary.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[str] | bpe.Merges,
        *,
        max_length: int = DEFAULT_LENGTH,
        bos_token: str = BOS,
        eos_token: str = EOS,
        unk_token: str = EOS,
        pad_token: str = EOS,
        added_tokens: Sequence[AddedToken] | None = None,
    ) -> None:
        specials = dict.fromkeys((bos_token, eos_token, unk_token, pad_token))
        if added_tokens is None:
            missing = [token for token in specials if token not in vocab]
            if missing:
                raise ValueError(f"tokenizer: the vocabulary has no {', '.join(missing)}")
            added_tokens = [AddedToken(token, normalized=False) for token in specials]
        added = assign_ids(added_tokens, vocab)
        self._added = {token.content: number for token, number in added.items()}
        self.bos_id, self.eos_id = self._id(vocab, bos_token), self._id(vocab, eos_token)
        self.pad_id = self._id(vocab, pad_token)
        self.vocab_size = max(*vocab.values(), *self._added.values()) + 1
        self.max_length = max_length
        self._unk_id = self._id(vocab, unk_token)
        self._vocab = vocab
        self._merges = merges if isinstance(merges, bpe.Merges) else bpe.Merges(merges)
        self._words: dict[str, tuple[int, ...]] = {}
        self._tokens: dict[int, str] = {}
        self._raw = Splitter((t.content, t, i) for t, i in added.items() if not t.normalized)
        self._normalised = Splitter(
            (normalization.normalise(t.content), t, i) for t, i in added.items() if t.normalized
        )

    def _id(self, vocab: Mapping[str, int], token: str) -> int:
        number = self._added.get(token, vocab.get(token))
        if number is None:
            raise ValueError(f"tokenizer: the vocabulary has no {token}")
        return number

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read tokenizer.json, or vocab.json with merges.txt, and the smaller files if present.

        These are tokenizer_config.json, special_tokens_map.json and added_tokens.json.
        Raises: FileNotFoundError: no tokenizer there. ValueError: the files are damaged, or do not
          belong together.
        """
        files = tokenizer_files.read(Path(folder))
        return cls(
            files.vocab,
            files.merges,
            max_length=files.max_length,
            bos_token=files.bos_token,
            eos_token=files.eos_token,
            unk_token=files.unk_token,
            pad_token=files.pad_token,
            added_tokens=files.added_tokens,
        )

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids of each prompt between start and end token, padded or truncated.

        What is cut off is logged as a warning, once a prompt; `left_out` tells it too.
        Returns: (B, max_length) int64.
        Raises: TypeError: `prompts` is one string, or holds something else than strings.
        """
        if isinstance(prompts, str):
            raise TypeError("tokenizer: expected a list of prompts, got one string")
        room = self.max_length - 2
        rows = np.full((len(prompts), self.max_length), self.pad_id, dtype=np.int64)
        encoded: dict[str, list[int]] = {}
        for row, prompt in zip(rows, prompts, strict=True):
            ids = encoded.get(prompt) if isinstance(prompt, str) else None
            if ids is None:
                ids = encoded[prompt] = self.encode(prompt)
                if len(ids) > room:
                    text = self.decode(ids[room:])
                    logger.warning(
                        "prompt of %d tokens is cut to the first %d, left out is: %r%s",
                        len(ids),
                        room,
                        text[:_SHOWN],
                        "..." if len(text) > _SHOWN else "",
                    )
            ids = ids[:room]
            row[: len(ids) + 2] = [self.bos_id, *ids, self.eos_id]
        return rows

    def left_out(self, prompt: str) -> str:
        """The end of a prompt that finds no room in a row, in small letters; "" if all does.

        Raises: TypeError, ValueError: see `encode`.
        """
        return self.decode(self.encode(prompt)[self.max_length - 2 :])

    def expand(self, text: str) -> str:
        """Write out learned words of several vectors: `<cat>` becomes `<cat> <cat>_1 <cat>_2`.

        For every added token that is followed by tokens of its own name and a number.
        """
        for token in self._added:
            if token in text and f"{token}_1" in self._added:
                numbered = itertools.takewhile(
                    self._added.__contains__, (f"{token}_{i}" for i in itertools.count(1))
                )
                text = text.replace(token, " ".join((token, *numbered)))
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end token, however many there are.

        Special and added tokens written out in the text become their ids.
        Raises: TypeError: not a string. ValueError: lone surrogates, which no UTF-8 can hold.
        """
        if not isinstance(text, str):
            raise TypeError(f"tokenizer: expected a string, got {type(text).__name__}")
        if not text.isascii():
            normalization.check_unicode(text)
        ids: list[int] = []
        words = self._words
        for part in self._parts(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                for word in normalization.pieces(part):
                    ids += words.get(word) or self._word_ids(word)
        return ids

    def _parts(self, text: str) -> list[str | int]:
        """Ids of added tokens, and normalised text between them."""
        parts: list[str | int] = []
        for part in self._raw.split(text):
            if isinstance(part, int):
                parts.append(part)
            elif self._normalised:
                parts += self._normalised.split(normalization.normalise(part))
            else:
                parts.append(normalization.small(part))
        return parts

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, words apart by one space.

        Raises: ValueError: an id that is no token's.
        """
        if not self._tokens:
            named = {**self._vocab, **self._added}
            self._tokens = {number: token for token, number in named.items()}
        byte, out = bpe.symbol_bytes(), bytearray()
        for number in ids:
            token = self._tokens.get(int(number))
            if token is None:
                raise ValueError(f"tokenizer: no token has the id {number}")
            if token in self._added:
                out += f"{token} ".encode()
                continue
            word = token.removesuffix(bpe.END)
            out += bytes(byte.get(symbol, 0x3F) for symbol in word)
            out += b" " if word != token else b""
        return out.decode("utf-8", errors="replace").strip()

    def _word_ids(self, word: str) -> tuple[int, ...]:
        letters = word
        if not (word.isascii() and word.isprintable()):
            symbols = bpe.byte_symbols()
            letters = "".join(symbols[byte] for byte in word.encode("utf-8"))
        token = letters + bpe.END
        if self._merges.is_whole(token):
            ids: tuple[int, ...] = (self._vocab.get(token, self._unk_id),)
        else:
            tokens = self._merges.apply([*letters[:-1], letters[-1] + bpe.END])
            ids = tuple(self._vocab.get(token, self._unk_id) for token in tokens)
        words = self._words
        if len(word) < 100:
            if len(words) >= _CACHED_WORDS:
                words.clear()
            words[word] = ids
        return ids
