"""The rank of each layer's factors, for backends that compile for it."""

from __future__ import annotations

from collections.abc import Mapping

from sdexport.runtime.adapters.lora_inputs import LayerShape

COMPILES = "openvino"
"""The backend that compiles a graph for the shapes of its first call."""
RANK_STEP = 16
_OUTER = ("time_emb", "add_emb", ".resnets.", "samplers.", "conv_")


class LargestRanks:
    """The largest rank of each group of layers of a component so far.

    Ranks only grow, to 16, 32, 64, ... So a pipeline compiles a few times at most, and LoRAs that
    are smaller than one before take its shapes.
    """

    def __init__(self) -> None:
        self._ranks: dict[str, dict[str, int]] = {}

    def of(self, component: str, shape: LayerShape) -> int:
        """The rank of a layer without a LoRA, in a graph that takes some."""
        return self._ranks.get(component, {}).get(group_of(shape), 0)

    def grown(self, component: str, ranks: Mapping[str, int]) -> tuple[dict[str, int], bool]:
        """The ranks to use, and whether they are others than before.

        Args:
          ranks: those that are needed, by group.
        """
        before = self._ranks.get(component, {})
        now = {group: max(before.get(group, 0), _bucket(rank)) for group, rank in ranks.items()}
        self._ranks[component] = now
        return now, before != now


def group_of(shape: LayerShape) -> str:
    """The group of a layer: most LoRAs change those of attention blocks alone."""
    if shape.taps > 1:
        return "kernel"
    return "outer" if any(part in shape.name for part in _OUTER) else "attention"


def largest(needed: Mapping[LayerShape, int]) -> dict[str, int]:
    """The largest rank of each group."""
    found: dict[str, int] = {}
    for shape, rank in needed.items():
        found[group_of(shape)] = max(found.get(group_of(shape), 0), rank)
    return found


def rounded(ranks: Mapping[str, int]) -> dict[str, int]:
    """The ranks as multiples of RANK_STEP."""
    return {group: -(-rank // RANK_STEP) * RANK_STEP for group, rank in ranks.items()}


def _bucket(rank: int) -> int:
    """RANK_STEP times a power of two; 0 for 0."""
    return 0 if rank == 0 else RANK_STEP * 2 ** max((rank - 1) // RANK_STEP, 0).bit_length()
