"""Byte-pair encoding: merges the symbols of a word into tokens.

Source: Sennrich et al. 2016, arXiv 1508.07909, algorithm 1.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import repeat

END = "</w>"
_NEVER = 1 << 60
_SHORT = 40
_LONGEST_WHOLE = 100
_SYMBOL, _NOT_WHOLE = -1, -2


class Merges:
    """A list of merges, indexed so that they can be applied.

    Args:
      lines: pairs as "left right", that of the lowest rank first; of equal pairs the last counts.
    Attributes:
      lines: as above.
      ranks: rank of each line.
      products: token to the rank of the merge that makes it.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        self.ranks = dict(zip(lines, range(len(lines)), strict=True))
        joined = map(str.replace, lines, repeat(" "), repeat(""))
        self.products = dict(zip(joined, map(self.ranks.__getitem__, lines), strict=True))
        # is_whole needs a single history per token: empty if a token can be made in two ways
        self._makers = self.products if len(self.products) == len(self.ranks) else {}
        self._made = dict.fromkeys(_base_symbols(), _SYMBOL)

    def apply(self, symbols: list[str]) -> list[str]:
        """Merge pairs, lowest rank first and leftmost of equal ranks, until none has a rank."""
        return (join_short if len(symbols) <= _SHORT else join_long)(symbols, self.ranks)

    def is_whole(self, token: str) -> bool:
        """Whether merging the symbols of `token` certainly gives that one token.

        Much faster than merging them. False means unknown: apply the merges to find out.

        The last merge of a token joins two halves, each of which was merged from two smaller ones,
        and so on. Undo these merges from the last to the first: at any time exactly one pair of
        neighbours touches at the boundary of the two halves. If no such pair has a lower rank than
        the merge that was undone before, nothing is ever merged across the boundary, and each half
        is merged as if it were alone.
        """
        made = self._made.get(token)
        if made is None:
            made = self._made[token] = self._check(token)
        return made != _NOT_WHOLE

    def _check(self, token: str) -> int:
        """Rank of the merge that makes the token, or _NOT_WHOLE."""
        rank = self._makers.get(token)
        if rank is None or len(token) > _LONGEST_WHOLE:
            return _NOT_WHOLE
        made, lines, ranks = self._made, self.lines, self.ranks
        left, _, right = lines[rank].partition(" ")
        made_left, made_right = made.get(left), made.get(right)
        if made_left is None:
            made_left = made[left] = self._check(left)
        if made_right is None:
            made_right = made[right] = self._check(right)
        if not (_NOT_WHOLE < made_left < rank and _NOT_WHOLE < made_right < rank):
            return _NOT_WHOLE
        while made_left >= 0 or made_right >= 0:
            if made_left > made_right:
                undone = made_left
                left = lines[undone].partition(" ")[2]
                made_left = made[left]
            else:
                undone = made_right
                right = lines[undone].partition(" ")[0]
                made_right = made[right]
            if ranks.get(f"{left} {right}", _NEVER) <= undone:
                return _NOT_WHOLE
        return rank


def join_short(symbols: list[str], ranks: Mapping[str, int]) -> list[str]:
    """`Merges.apply` for short words: searches all pairs after each merge."""
    parts = list(symbols)
    rank_of = ranks.get
    near = [rank_of(f"{a} {b}", _NEVER) for a, b in itertools.pairwise(parts)]
    while near and (lowest := min(near)) != _NEVER:
        i = near.index(lowest)
        joined = parts[i] + parts[i + 1]
        parts[i : i + 2] = [joined]
        del near[i]
        if i:
            near[i - 1] = rank_of(f"{parts[i - 1]} {joined}", _NEVER)
        if i < len(near):
            near[i] = rank_of(f"{joined} {parts[i + 1]}", _NEVER)
    return parts


def join_long(symbols: list[str], ranks: Mapping[str, int]) -> list[str]:
    """`Merges.apply` for words of any length in O(n log n): a heap over a linked list."""
    end = len(symbols)
    parts: list[str | None] = list(symbols)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    heap = [
        (rank, i, pair)
        for i, pair in enumerate(itertools.pairwise(symbols))
        if (rank := ranks.get(f"{pair[0]} {pair[1]}")) is not None
    ]
    heapq.heapify(heap)
    while heap:
        _, i, pair = heapq.heappop(heap)
        j = after[i]
        if parts[i] != pair[0] or j >= end or parts[j] != pair[1]:
            continue  # one of the two has been merged with its other neighbour
        joined = pair[0] + pair[1]
        parts[i], parts[j] = joined, None
        after[i] = after[j]
        if after[i] < end:
            before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            if left >= 0 and right < end:
                near = (parts[left] or "", parts[right] or "")
                if (rank := ranks.get(f"{near[0]} {near[1]}")) is not None:
                    heapq.heappush(heap, (rank, left, near))
    return [part for part in parts if part is not None]


@cache
def byte_symbols() -> list[str]:
    """A character for each byte: itself if printable, else one from U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


@cache
def symbol_bytes() -> dict[str, int]:
    """The byte for each character of `byte_symbols`."""
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}


@cache
def _base_symbols() -> frozenset[str]:
    return frozenset(symbol + end for symbol in byte_symbols() for end in ("", END))
