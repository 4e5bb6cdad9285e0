"""CLIP's byte-pair tokenizer, equal to the Rust tokenizer of transformers for every string.

Source: Radford et al. 2021, arXiv 2103.00020, section 2.4; Sennrich et al. 2016, arXiv 1508.07909.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from runtime import unicode_tables

logger = logging.getLogger(__name__)

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d|[{letters}]+|[{numbers}]|[^{space}{letters}{numbers}]+"
)
_ASCII_PIECES = re.compile(_PIECES.format(letters="a-zA-Z", numbers="0-9", space=_SPACE))
_CAPITAL_SPECIAL = {BOS: ("<|", "startoftext", "|>"), EOS: ("<|", "endoftext", "|>")}
_CACHED_WORDS = 20_000
# Scripts with composites that are newer than Unicode 9, the one of the Rust tokenizer's NFC.
_NEWER_COMPOSITES = (
    (0x11930, 0x11938),
    (0x105C0, 0x105FF),
    (0x11380, 0x113FF),
    (0x16100, 0x1613F),
    (0x16D40, 0x16D7F),
)


class ClipTokenizer:
    """Text to token ids.

    Args:
      vocab: token to id, byte symbols and merged tokens, the last of a word ending in `</w>`.
      merges: pairs of tokens, the most frequent first.
      max_length: length of a row of ids, specials included.
      pad_token: fills the rows; SD 1.x repeats the end token, SD 2.x uses "!".
    Raises: ValueError: special tokens are missing from `vocab`, or a merge makes no known token.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        max_length: int = 77,
        pad_token: str = EOS,
    ) -> None:
        missing = [token for token in (BOS, EOS, pad_token) if token not in vocab]
        if missing:
            raise ValueError(f"tokenizer: the vocabulary has no {', '.join(missing)}")
        self.bos_id, self.eos_id, self.pad_id = vocab[BOS], vocab[EOS], vocab[pad_token]
        self.vocab_size = max(vocab.values()) + 1
        self.max_length = max_length
        self._vocab = vocab
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._symbols = _byte_symbols()
        self._words: dict[str, tuple[int, ...]] = {}
        self._special = re.compile(f"({re.escape(BOS)}|{re.escape(EOS)})")

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read vocab.json with merges.txt, or tokenizer.json, and tokenizer_config.json if present.

        Raises: FileNotFoundError: no tokenizer there. ValueError: the files are damaged, or do not
          belong together.
        """
        folder = Path(folder)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            vocab = _read_json(folder / "vocab.json")
            merges = _read_merges(folder / "merges.txt")
        elif (folder / "tokenizer.json").is_file():
            vocab, merges = _read_tokenizer_json(folder / "tokenizer.json")
        else:
            raise FileNotFoundError(
                f"no tokenizer in {folder}: expected vocab.json and merges.txt, or tokenizer.json"
            )
        _check_vocab(folder, vocab, merges)
        config: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                config |= _read_json(folder / name)
        pad = config.get("pad_token") or EOS
        length = config.get("model_max_length", 77)
        if not isinstance(length, int) or not 2 <= length <= 100_000:
            length = 77
        return cls(
            vocab,
            merges,
            max_length=length,
            pad_token=pad["content"] if isinstance(pad, dict) else str(pad),
        )

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids of each prompt between start and end token, padded or truncated.

        What is cut off is logged as a warning.
        Returns: (B, max_length) int64.
        Raises: TypeError: `prompts` is one string, or holds something else than strings.
        """
        if isinstance(prompts, str):
            raise TypeError("tokenizer: expected a list of prompts, got one string")
        room = self.max_length - 2
        rows = np.full((len(prompts), self.max_length), self.pad_id, dtype=np.int64)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = self.encode(prompt)
            if len(ids) > room:
                logger.warning(
                    "prompt of %d tokens is cut to the first %d: '%.60s...'", len(ids), room, prompt
                )
                ids = ids[:room]
            row[: len(ids) + 2] = [self.bos_id, *ids, self.eos_id]
        return rows

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end token, however many there are.

        Special tokens written out in the text become their ids.
        Raises: TypeError: not a string. ValueError: lone surrogates, which no UTF-8 can hold.
        """
        if not isinstance(text, str):
            raise TypeError(f"tokenizer: expected a string, got {type(text).__name__}")
        ids: list[int] = []
        for number, part in enumerate(self._special.split(text)):
            if number % 2:
                ids.append(self.bos_id if part == BOS else self.eos_id)
            elif part:
                for word in self._pieces(part):
                    ids += self._words.get(word) or self._word_ids(word)
        return ids

    def _pieces(self, text: str) -> list[str]:
        if text.isascii():
            pieces = _ASCII_PIECES.findall(text.lower())
        else:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"tokenizer: the text is not valid Unicode: lone surrogate at {error.start}"
                ) from None
            pieces = _unicode_pieces().findall(_lower(_nfc(text)))
        if BOS in pieces or EOS in pieces:  # written in capitals: a piece, but not a special token
            return [part for piece in pieces for part in _CAPITAL_SPECIAL.get(piece, (piece,))]
        return pieces

    def _word_ids(self, word: str) -> tuple[int, ...]:
        symbols = [self._symbols[byte] for byte in word.encode("utf-8")]
        symbols[-1] += "</w>"
        ids = tuple(self._vocab.get(token, self.eos_id) for token in merge(symbols, self._ranks))
        if len(word) < 100:
            if len(self._words) >= _CACHED_WORDS:
                self._words = {}
            self._words[word] = ids
        return ids


def merge(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Join neighbours, the lowest rank first and the leftmost of equals, until no pair has a rank.

    A heap of candidates over a linked list: O(n log n) for words of any length.
    """
    end = len(symbols)
    parts: list[str | None] = list(symbols)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    heap = [
        (rank, i, pair)
        for i, pair in enumerate(itertools.pairwise(symbols))
        if (rank := ranks.get(pair)) is not None
    ]
    heapq.heapify(heap)
    while heap:
        _, i, pair = heapq.heappop(heap)
        j = after[i]
        if parts[i] != pair[0] or j >= end or parts[j] != pair[1]:
            continue  # one of the two was joined to another neighbour meanwhile
        joined = pair[0] + pair[1]
        parts[i], parts[j] = joined, None
        after[i] = after[j]
        if after[i] < end:
            before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            if left >= 0 and right < end:
                near = (parts[left] or "", parts[right] or "")
                if (rank := ranks.get(near)) is not None:
                    heapq.heappush(heap, (rank, left, near))
    return [part for part in parts if part is not None]


@cache
def _byte_symbols() -> list[str]:
    """The character for each byte: printable ones themselves, the others from U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _ranges(table: str) -> Iterator[tuple[int, int]]:
    """First and last code point of each range in a packed table."""
    numbers = [int(word, 36) for word in table.split()]
    at = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        yield at + gap, at + gap + length - 1
        at += gap + length


def _character_class(table: str) -> str:
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in _ranges(table))


@cache
def _unicode_pieces() -> re.Pattern[str]:
    letters = _character_class(unicode_tables.LETTERS)
    numbers = _character_class(unicode_tables.NUMBERS)
    return re.compile(_PIECES.format(letters=letters, numbers=numbers, space=_SPACE))


@cache
def _lower_case() -> dict[int, int]:
    """Small letters that `str.lower` has otherwise: new ones, and the sigma at word ends."""
    numbers = [int(word, 36) for word in unicode_tables.LOWER_CASE.split()]
    return {0x3A3: 0x3C3} | dict(zip(numbers[::2], numbers[1::2], strict=True))


def _lower(text: str) -> str:
    return text.translate(_lower_case()).lower()


@cache
def _strangers() -> frozenset[str]:
    """Characters that Python's NFC moves or composes and the Rust tokenizer's leaves alone."""
    known = {c for first, last in _ranges(unicode_tables.MARKS) for c in range(first, last + 1)}
    newer = {c for first, last in _NEWER_COMPOSITES for c in range(first, last + 1)}
    marks = (c for c in range(0x300, 0x1F000) if unicodedata.combining(chr(c)))
    return frozenset(chr(c) for c in newer.union(c for c in marks if c not in known))


def _nfc(text: str) -> str:
    if unicodedata.is_normalized("NFC", text) and _strangers().isdisjoint(text):
        return text
    out, start = [], 0
    for i, char in enumerate(text):
        if char in _strangers():
            out += [unicodedata.normalize("NFC", text[start:i]), char]
            start = i + 1
    return "".join(out) + unicodedata.normalize("NFC", text[start:])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"tokenizer: {path.name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"tokenizer: {path.name} holds no JSON object")
    return value


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"tokenizer: {path.name} is no UTF-8 text") from error
    return _pairs(path, [line for line in lines if line and not line.startswith("#version")])


def _pairs(path: Path, merges: Sequence[Any]) -> list[tuple[str, str]]:
    pairs = []
    for number, entry in enumerate(merges, 1):
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) != 2:
            raise ValueError(f"tokenizer: {path.name}: merge {number} is no pair: {entry!r:.60}")
        pairs.append((str(parts[0]), str(parts[1])))
    return pairs


def _read_tokenizer_json(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    data = _read_json(path)
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ValueError(f"tokenizer: {path.name} holds no byte-pair model")
    added = {t["content"]: t["id"] for t in data.get("added_tokens", [])}
    return model["vocab"] | added, _pairs(path, model.get("merges", []))


def _check_vocab(folder: Path, vocab: Mapping[str, Any], merges: Sequence[tuple[str, str]]) -> None:
    if not all(isinstance(value, int) and value >= 0 for value in vocab.values()):
        raise ValueError(
            f"tokenizer: the vocabulary in {folder} maps tokens to something else than ids"
        )
    stray = next((pair for pair in merges if pair[0] + pair[1] not in vocab), None)
    if stray:
        raise ValueError(
            f"tokenizer: merges and vocabulary in {folder} do not belong together: "
            f"'{stray[0]}' + '{stray[1]}' makes no token of the vocabulary"
        )
