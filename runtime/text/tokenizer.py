"""CLIP's byte-pair tokenizer, equal to the Rust tokenizer of transformers for every string.

Source: Radford et al. 2021, arXiv 2103.00020, section 2.4; Sennrich et al. 2016, arXiv 1508.07909.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from sdexport.engines.errors import InvalidArgumentError, PackageError, SDExportError
from sdexport.runtime.text import bpe, normalization, tokenizer_files
from sdexport.runtime.text.added_tokens import AddedToken, Splitter, assign_ids
from sdexport.runtime.text.special_tokens import BOS, EOS
from sdexport.runtime.text.tokenizer_files import DEFAULT_LENGTH

logger = logging.getLogger(__name__)

_CACHED_WORDS = 20_000
_SHOWN = 200
_LONGEST = 1_000_000
"""Characters of a prompt whose textual inversions are written out."""


class ClipTokenizer:
    """Turns prompts into token ids; equal to transformers' CLIPTokenizer, without its dependencies.

    Args:
      vocab: token to id. The tokens are byte symbols and what is merged from them; `</w>` marks
        the end of a word.
      merges: pairs of tokens as "left right", that of the lowest rank first.
      max_length: ids in a row, special tokens included.
      bos_token, eos_token: the first id of a row, and the one after the prompt.
      pad_token: fills the rest of a row; SD 1.x repeats the end token, SD 2.x uses "!".
      unk_token: replaces what is not in the vocabulary.
      added_tokens: split out of a text before byte-pair encoding; default the four above. So "!"
        in a prompt for SD 2.x is the pad token, as in transformers.
    Raises: InvalidArgumentError: the vocabulary lacks a special token.
    Example:
        >>> from sdexport import ClipTokenizer
        >>> tokenizer = ClipTokenizer.from_folder("package/tokenizer")
        >>> input_ids = tokenizer(["a red circle", "a blue star"])
        >>> input_ids.shape, input_ids.dtype
        ((2, 77), dtype('int64'))
        >>> tokenizer.decode(tokenizer.encode("A red  circle!"))
        'a red circle !'
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
                raise InvalidArgumentError(f"tokenizer: the vocabulary has no {', '.join(missing)}")
            added_tokens = [AddedToken(token, normalized=False) for token in specials]
        self._vocab = vocab
        self._add(assign_ids(added_tokens, vocab))
        self.bos_id, self.eos_id = self._id(vocab, bos_token), self._id(vocab, eos_token)
        self.pad_id = self._id(vocab, pad_token)
        self.max_length = max_length
        self._unk_id = self._id(vocab, unk_token)
        self._merges = merges if isinstance(merges, bpe.Merges) else bpe.Merges(merges)
        self._words: dict[str, tuple[int, ...]] = {}

    def _add(self, added: Mapping[AddedToken, int]) -> None:
        """Set the added tokens, all of them."""
        self._added_tokens = added
        self._added = {token.content: number for token, number in added.items()}
        self._continued = {
            number
            for token, number in self._added.items()
            if token.rpartition("_")[2].isdecimal() and token.rpartition("_")[0] in self._added
        }
        self._several = [token for token in self._added if f"{token}_1" in self._added]
        self.vocab_size = max(*self._vocab.values(), *self._added.values()) + 1
        self._tokens: dict[int, str] = {}
        self._raw = Splitter((t.content, t, i) for t, i in added.items() if not t.normalized)
        self._normalized = Splitter(
            (normalization.normalize(t.content), t, i) for t, i in added.items() if t.normalized
        )

    def with_tokens(self, tokens: Sequence[str]) -> ClipTokenizer:
        """A copy with further added tokens, which have the next ids."""
        other = copy.copy(self)
        new = {AddedToken(token): self.vocab_size + n for n, token in enumerate(tokens)}
        other._add({**self._added_tokens, **new})
        return other

    def __contains__(self, token: object) -> bool:
        """Whether the vocabulary or the added tokens have it."""
        return token in self._vocab or token in self._added

    def _id(self, vocab: Mapping[str, int], token: str) -> int:
        number = self._added.get(token, vocab.get(token))
        if number is None:
            raise InvalidArgumentError(f"tokenizer: the vocabulary has no {token}")
        return number

    @classmethod
    def from_folder(cls, folder: str | Path, *, error: type[SDExportError] = PackageError) -> Self:
        """Read a tokenizer as transformers saves it, from the folder of a package or a checkpoint.

        That is tokenizer.json, or vocab.json and merges.txt, and if they are there
        tokenizer_config.json, special_tokens_map.json and added_tokens.json.

        Args:
          error: raised if files are missing, damaged, or do not belong together.
        Raises: PackageError: see `error`. OSError: a file cannot be read.
        """
        files = tokenizer_files.read(Path(folder), error)
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
        """Token ids of prompts: start token, prompt, end token, padding.

        A prompt that is too long is truncated; a warning with the rest of it is logged.

        Returns: (B, max_length) int64.
        Raises: InvalidArgumentError: `prompts` is one string, or holds something else than valid
          Unicode strings.
        """
        if isinstance(prompts, str):
            raise InvalidArgumentError("tokenizer: expected a list of prompts, got one string")
        room = self.max_length - 2
        rows = np.full((len(prompts), self.max_length), self.pad_id, dtype=np.int64)
        encoded: dict[str, list[int]] = {}
        for row, prompt in zip(rows, prompts, strict=True):
            ids = encoded.get(prompt) if isinstance(prompt, str) else None
            if ids is None:
                ids = encoded[prompt] = self.encode(prompt)
                if len(ids) > room:
                    self._warn(ids, room)
            ids = ids[:room]
            row[: len(ids) + 2] = [self.bos_id, *ids, self.eos_id]
        return rows

    def _warn(self, ids: Sequence[int], room: int) -> None:
        """Log that a prompt is truncated to `room` ids."""
        rest = self.decode(ids[room:])
        logger.warning(
            "prompt of %d tokens is truncated to the first %d; the rest is ignored: %r%s",
            len(ids),
            room,
            rest[:_SHOWN],
            "..." if len(rest) > _SHOWN else "",
        )

    def truncated_text(self, prompt: str) -> str:
        """The end of a prompt that does not fit into a row, in lower case; "" if all of it fits.

        Raises: InvalidArgumentError: see `encode`.
        """
        return self.decode(self.encode(prompt)[self.max_length - 2 :])

    def expand(self, text: str) -> str:
        """Write out textual inversions of several vectors: `<cat>` becomes `<cat> <cat>_1 <cat>_2`.

        A textual inversion of several vectors is an added token together with added tokens of the
        same name and a number.

        Raises: InvalidArgumentError: the result is unreasonably long.
        """
        for token in self._several:
            if token in text:
                numbered = itertools.takewhile(
                    self._added.__contains__, (f"{token}_{i}" for i in itertools.count(1))
                )
                text = text.replace(token, " ".join((token, *numbered)))
                if len(text) > _LONGEST:
                    raise InvalidArgumentError(
                        f"prompt: with its textual inversions written out it has more than "
                        f"{_LONGEST:,} characters"
                    )
        return text

    def continues(self, number: int) -> bool:
        """Whether an id is a further vector of a textual inversion of several vectors."""
        return number in self._continued

    def embedding(self, name: str) -> str | None:
        """The word of a textual inversion, from its name with or without angle brackets."""
        return next((word for word in (name, f"<{name}>") if word in self._added), None)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start and end token.

        Special and added tokens that the text contains become their ids.

        Raises: InvalidArgumentError: not a string; lone surrogates, which UTF-8 cannot encode.
        """
        if not isinstance(text, str):
            raise InvalidArgumentError(f"tokenizer: expected a string, got {type(text).__name__}")
        if not text.isascii():
            normalization.check_unicode(text)
        ids: list[int] = []
        words = self._words
        for part in self._parts(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                for word in normalization.pre_tokenize(part):
                    ids += words.get(word) or self._word_ids(word)
        return ids

    def _parts(self, text: str) -> list[str | int]:
        """Ids of added tokens, and the text between them in lower case."""
        parts: list[str | int] = []
        for part in self._raw.split(text):
            if isinstance(part, int):
                parts.append(part)
            elif self._normalized:
                parts += self._normalized.split(normalization.normalize(part))
            else:
                parts.append(normalization.lower_nfc(part))
        return parts

    def token(self, number: int) -> str:
        """The token of an id, in byte symbols; `</w>` marks the end of a word.

        Raises: InvalidArgumentError: no token has such an id.
        """
        if not self._tokens:
            named = {**self._vocab, **self._added}
            self._tokens = {number: token for token, number in named.items()}
        token = self._tokens.get(int(number))
        if token is None:
            raise InvalidArgumentError(f"tokenizer: no token has the id {number}")
        return token

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, with one space between words.

        Raises: InvalidArgumentError: no token has such an id.
        """
        byte, out = bpe.symbol_bytes(), bytearray()
        for number in ids:
            token = self.token(number)
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
