"""The kinds of LoRA: which weights of a layer belong to each. Names and shapes alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

LORA, LOHA, LOKR = "LoRA", "LoHa", "LoKr"
GLORA, IA3, OFT, FULL, NORM = "GLoRA", "IA3", "OFT", "full difference", "norm"
SINGLE = ("alpha", "scale", "on_input")
"""Roles whose tensors have one value, which may be an integer."""
BIASES = frozenset({"diff_b", "b_norm"})
DORA = frozenset({"magnitude", "dora_scale"})
"""Roles of the lengths that DoRA gives the channels of a changed weight."""
_ALPHA = frozenset({"alpha", "scale"})
_HADA = frozenset({"w1_a", "w1_b", "w2_a", "w2_b"})
_KRON = frozenset({"k_w1", "k_w1_a", "k_w1_b", "k_w2", "k_w2_a", "k_w2_b"})


@dataclass(frozen=True)
class Kind:
    """One kind of LoRA.

    marks: the roles that it is recognised by.
    others: roles that it may have as well.
    optional: those of `marks` that may be missing.
    ranked: roles whose first axis is the rank, which alpha is divided by; the first one that is
      there counts.
    """

    name: str
    marks: frozenset[str]
    others: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    ranked: tuple[str, ...] = ()

    def rank(self, tensors: Mapping[str, Any]) -> int | None:
        """The rank of a layer's factors by role; None if they do not say."""
        role = next((role for role in self.ranked if role in tensors), None)
        return None if role is None else int(tensors[role].shape[0])


KINDS = (
    Kind(LORA, frozenset({"down", "up"}), _ALPHA | DORA | {"mid", "up_bias"}, ranked=("down",)),
    Kind(LOHA, _HADA, _ALPHA | {"t1", "t2", "dora_scale"}, ranked=("w1_b",)),
    Kind(LOKR, _KRON, _ALPHA | {"k_t2", "dora_scale"}, _KRON, ranked=("k_w1_b", "k_w2_b")),
    Kind(GLORA, frozenset({"a1", "a2", "b1", "b2"}), _ALPHA | {"bm"}, ranked=("a2",)),
    Kind(IA3, frozenset({"factor", "on_input"})),
    Kind(OFT, frozenset({"oft_blocks"}), frozenset({"rescale", "alpha"})),
    Kind(FULL, frozenset({"diff"}), frozenset({"alpha"})),
    Kind(NORM, frozenset({"w_norm"})),
)


def kind_of(roles: Collection[str]) -> Kind:
    """The kind of a layer, by the roles of its weights.

    Raises: ValueError: there is none, or more than one; a factor is missing or does not belong.
    """
    found = [kind for kind in KINDS if not kind.marks.isdisjoint(roles)]
    if not found:
        raise ValueError(f"it holds only its {' and '.join(sorted(roles))}")
    if len(found) > 1:
        raise ValueError(f"it holds factors of {' and of '.join(kind.name for kind in found)}")
    kind = found[0]
    missing = kind.marks - kind.optional - set(roles)
    if kind.name == LOKR:
        whole = ({"k_w1"}, {"k_w2"}), ({"k_w1_a", "k_w1_b"}, {"k_w2_a", "k_w2_b"})
        for one, two in zip(*whole, strict=True):
            missing |= set() if one <= set(roles) else two - set(roles)
    if missing:
        names = ", ".join(map(spelled, sorted(missing)))
        raise ValueError(f"a part of its {kind.name} is missing: {names}")
    if extra := set(roles) - kind.marks - kind.others - BIASES:
        names = ", ".join(map(spelled, sorted(extra)))
        raise ValueError(f"{kind.name} with {names} is not supported")
    return kind


def spelled(role: str) -> str:
    """A role as LyCORIS spells it."""
    if role.startswith("k_"):
        return f"lokr_{role.removeprefix('k_')}"
    plain = {"down": "lora_down", "up": "lora_up", "mid": "lora_mid", "factor": "weight"}
    return plain.get(role, f"hada_{role}" if role in _HADA | {"t1", "t2"} else role)
