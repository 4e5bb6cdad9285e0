"""The memory of multistep samplers, and weighted sums that allocate only their result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Term = tuple[float, np.ndarray | None]
"""A weight and an array, which may be None if the weight is 0."""


class StepHistory:
    """Arrays that a sampler remembers from earlier steps of a run.

    All of them are private copies and are never handed out: a step allocates only its results, and
    callers cannot change earlier values. They take the shape and dtype of the sample.

    Args:
      depth: how many values are remembered; `push` adds one and drops the oldest.
      kept: how many work arrays there are, which stay in their place.

    Attributes:
      scratch: an array whose values any call may change.
      kept: the work arrays.
      continues: whether this step follows the step before in the same run.
      first: index of the first step of the run.
      length: how many values are remembered, up to `depth`.
    """

    def __init__(self, depth: int = 0, kept: int = 0) -> None:
        self._depth, self._kept = depth, kept
        self._block = np.empty((0, 0), np.float32)
        self._order: list[int] = []  # rows of the block, the newest first
        self._next = -1
        self.scratch = np.empty(0, np.float32)
        self.kept: list[np.ndarray] = []
        self.continues = False
        self.first = self.length = 0

    def fresh(self) -> StepHistory:
        """An empty memory of the same size."""
        return StepHistory(self._depth, self._kept)

    def begin(self, i: int, sample: np.ndarray) -> None:
        """Begin step i; clear the memory if i, the shape or the dtype does not continue the run."""
        if sample.shape != self.scratch.shape or sample.dtype != self.scratch.dtype:
            self.scratch = np.empty(sample.shape, sample.dtype)
            self.kept = [np.zeros(sample.shape, sample.dtype) for _ in range(self._kept)]
            self._block = np.zeros((self._depth, sample.size), sample.dtype)
            self._next = -1
        self.continues = i == self._next
        if not self.continues:
            self.length, self.first = 0, i
            self._order = list(range(self._depth))  # every run sums in the same order
        self._next = i + 1

    def push(self) -> np.ndarray:
        """The array for a new value, in place of the oldest."""
        self._order.insert(0, self._order.pop())
        self.length = min(self.length + 1, self._depth)
        return self[0]

    def __getitem__(self, back: int) -> np.ndarray:
        """The newest value at 0, the one before it at 1."""
        row: np.ndarray = self._block[self._order[back]]
        return row.reshape(self.scratch.shape)

    def sum(self, *terms: Term) -> np.ndarray:
        """The weighted sum of arrays, in a new array."""
        return weighted_sum(np.empty(self.scratch.shape, self.scratch.dtype), self.scratch, *terms)

    def sum_newest(self, weights: Sequence[float]) -> np.ndarray:
        """The weighted sum of the newest values, in a new array, as one matrix product."""
        by_row = np.zeros(self._depth, self._block.dtype)
        by_row[self._order[: len(weights)]] = weights
        total: np.ndarray = np.dot(by_row, self._block).reshape(self.scratch.shape)
        return total


def weighted_sum(out: np.ndarray, scratch: np.ndarray, *terms: Term) -> np.ndarray:
    """out = the weighted sum of arrays, without allocating.

    Args:
      out: receives the sum; only the first of the terms may be this array.
      scratch: the same shape and dtype; its values are lost.
    Returns: out.
    """
    total: np.ndarray | None = None  # `out`, or the first array as long as it is the whole sum
    for weight, array in terms:
        if not weight or array is None:
            continue
        if total is None:
            total = array if weight == 1.0 else np.multiply(array, weight, out)
        elif weight == 1.0:
            total = np.add(total, array, out)
        else:
            total = np.add(total, np.multiply(array, weight, scratch), out)
    if total is not out:
        np.copyto(out, 0.0 if total is None else total)
    return out


def sum_of(first: tuple[float, np.ndarray], *terms: Term) -> np.ndarray:
    """The weighted sum of arrays, in a new array of the shape and dtype of the first."""
    array = first[1]
    return weighted_sum(np.empty_like(array), np.empty_like(array), first, *terms)
