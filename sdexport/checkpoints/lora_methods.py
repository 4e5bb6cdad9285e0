"""The methods of LoRA files: from a layer's factors to its new weight and bias, in float32.

Sources: LoRA: Hu et al. 2021, arXiv 2106.09685, section 4.1. LoHa, LoKr, LoCon, Tucker's middle
tensors and GLoRA: Yeh et al. 2023, arXiv 2309.14859. LoHa: Hyeon-Woo et al. 2021, arXiv 2108.06098.
DoRA: Liu et al. 2024, arXiv 2402.09353, equation 5. OFT: Qiu et al. 2023, arXiv 2306.07280. BOFT:
Liu et al. 2023, arXiv 2311.06243. IA3: Liu et al. 2022, arXiv 2205.05638.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from sdexport.runtime.adapters.lora_kinds import (
    DORA,
    FULL,
    GLORA,
    IA3,
    LOHA,
    LOKR,
    LORA,
    NORM,
    OFT,
    Kind,
)

Factors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Method:
    """How a kind of LoRA changes a layer's weight.

    difference: (factors, shape of the weight) to what is added to it, without alpha.
    merge: (weight, factors, ratio, scale) to the new weight, for kinds that multiply it.
    """

    difference: Callable[[Factors, torch.Size], torch.Tensor] | None = None
    merge: Callable[[torch.Tensor, Factors, float, float], torch.Tensor] | None = None


def new_weight(
    kind: Kind, weight: torch.Tensor, factors: Factors, ratio: float, scale: float
) -> torch.Tensor:
    """The weight of a layer after the change.

    Args:
      weight: float32, also on the meta device, if the factors are there.
      factors: float32, by role.
      ratio: alpha / rank.
      scale: of the whole change, chosen by the user.
    Raises: ValueError, or anything that PyTorch raises: the shapes do not belong together.
    """
    method = _METHODS[kind.name]
    if method.merge is not None:
        return method.merge(weight, factors, ratio, scale)
    assert method.difference is not None
    change = method.difference(factors, weight.shape)
    if change.numel() != weight.numel() or change.shape[0] != weight.shape[0]:
        raise ValueError(f"expected a change of {tuple(weight.shape)}, got {tuple(change.shape)}")
    change = change.reshape(weight.shape) * ratio
    if not DORA.isdisjoint(factors):
        return _dora(weight, change, factors, scale)
    return torch.add(weight, change, alpha=scale)


def bias_change(factors: Factors, ratio: float) -> torch.Tensor | None:
    """What is added to a layer's bias at scale 1; None if it stays."""
    changes = [factors[role] for role in ("diff_b", "b_norm") if role in factors]
    if "up_bias" in factors:
        changes.append(factors["up_bias"] * ratio)
    return sum(changes[1:], changes[0]) if changes else None


def _dora(
    weight: torch.Tensor, change: torch.Tensor, factors: Factors, scale: float
) -> torch.Tensor:
    """The direction of the changed weight with a learned length for each output or input channel.

    At scales other than 1 the two formats differ. PEFT's (magnitude) scales the change, and the
    lengths stay. LyCORIS's (dora_scale) makes the whole change, and scales that of the lengths.
    """
    lengths = factors.get("magnitude", factors.get("dora_scale"))
    assert lengths is not None
    outputs, inputs = weight.shape[0], weight.shape[1]
    if lengths.numel() == outputs and ("magnitude" in factors or lengths.shape[0] == outputs):
        axis = 0
    elif "dora_scale" in factors and lengths.shape[:2] == (1, inputs) == (1, lengths.numel()):
        axis = 1
    else:
        raise ValueError(
            f"DoRA's scale has the shape {tuple(lengths.shape)}, for {outputs} outputs and "
            f"{inputs} inputs"
        )
    of_peft = "magnitude" in factors
    merged = torch.add(weight, change, alpha=scale if of_peft else 1.0)
    others = [dim for dim in range(weight.ndim) if dim != axis]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    norm = norm.clamp(min=torch.finfo(norm.dtype).tiny)
    factor = lengths.reshape(norm.shape) / norm
    return merged * (factor if of_peft else scale * (factor - 1) + 1)


def _lora(factors: Factors, shape: torch.Size) -> torch.Tensor:
    down, up = factors["down"], factors["up"]
    if not (down.numel() and up.numel()):
        raise ValueError(f"shapes {tuple(up.shape)} and {tuple(down.shape)} hold no values")
    if down.ndim < 2 or up.ndim < 2 or up[0, 0].numel() != 1 or up.shape[1] != down.shape[0]:
        raise ValueError(f"shapes {tuple(up.shape)} and {tuple(down.shape)} do not multiply")
    up = up.flatten(1)
    if "mid" in factors:
        return torch.einsum("op,pqkl,qi->oikl", up, factors["mid"], down.flatten(1))
    return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _loha(factors: Factors, shape: torch.Size) -> torch.Tensor:
    return _half(factors, "w1_a", "w1_b", "t1") * _half(factors, "w2_a", "w2_b", "t2")


def _half(factors: Factors, a: str, b: str, middle: str) -> torch.Tensor:
    """The product of two matrices, with Tucker's tensor between them if there is one."""
    if middle in factors:
        return torch.einsum("pq...,po,qi->oi...", factors[middle], factors[a], factors[b])
    return factors[a] @ factors[b].flatten(1)


def _lokr(factors: Factors, shape: torch.Size) -> torch.Tensor:
    first = factors["k_w1"] if "k_w1" in factors else factors["k_w1_a"] @ factors["k_w1_b"]
    second = factors["k_w2"] if "k_w2" in factors else _half(factors, "k_w2_a", "k_w2_b", "k_t2")
    if first.ndim != 2:
        raise ValueError(f"the first factor has the shape {tuple(first.shape)}")
    first = first.reshape(*first.shape, *(1 for _ in second.shape[2:]))
    return torch.kron(first, second.contiguous())  # which einsum's result need not be


def _glora(weight: torch.Tensor, factors: Factors, ratio: float, scale: float) -> torch.Tensor:
    """W + W A + B, where A and B are of low rank."""
    a1, a2, b1, b2 = (factors[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    added = b1 @ b2
    if "bm" in factors:
        added = torch.einsum("pqkl,op,qi->oikl", factors["bm"], b1, b2)
    multiplied = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
    change = (multiplied + added.reshape(weight.shape)) * ratio
    return torch.add(weight, change, alpha=scale)


def _ia3(weight: torch.Tensor, factors: Factors, ratio: float, scale: float) -> torch.Tensor:
    axis = 1 if bool(factors["on_input"].any()) else 0
    factor = factors["factor"]
    if factor.numel() != weight.shape[axis]:
        raise ValueError(f"{factor.numel()} factors for {weight.shape[axis]} channels")
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight * (factor.reshape(shape) * scale + 1)


def _oft(weight: torch.Tensor, factors: Factors, ratio: float, scale: float) -> torch.Tensor:
    """Blocks of the output channels are rotated; four dimensions: in stages, as a butterfly."""
    blocks = factors["oft_blocks"]
    size = blocks.shape[-1]
    if blocks.ndim not in (3, 4) or blocks.shape[-2] != size:
        raise ValueError(f"blocks of the shape {tuple(blocks.shape)}")
    if blocks.shape[-3] * size != weight.shape[0]:
        raise ValueError(f"{blocks.shape[-3]} blocks of {size} for {weight.shape[0]} outputs")
    identity = torch.eye(size, device=blocks.device)
    rotations = _rotations(blocks, identity, factors.get("alpha"), weight.shape[0])
    rotations = rotations * scale + (1 - scale) * identity
    if blocks.ndim == 3:
        rows = weight.reshape(len(blocks), size, -1)
        merged = torch.einsum("knm,knr->kmr", rotations, rows)
    else:
        merged = weight.flatten(1)
        for stage, rotation in enumerate(rotations):
            merged = _butterfly(merged, rotation, 2**stage * (size // 2))
    merged = merged.reshape(weight.shape)
    rescale = factors.get("rescale")
    return merged if rescale is None else merged * rescale.reshape(-1, *([1] * (weight.ndim - 1)))


def _rotations(
    blocks: torch.Tensor, identity: torch.Tensor, alpha: torch.Tensor | None, outputs: int
) -> torch.Tensor:
    """Cayley's transform of the skew part of each block; alpha limits its norm."""
    skew = blocks - blocks.transpose(-1, -2)
    limit = 0.0 if alpha is None else float(alpha) * outputs
    if limit > 0:
        skew = skew * torch.clamp(limit / (torch.linalg.vector_norm(skew) + 1e-8), max=1.0)
    return torch.linalg.solve(identity - skew, identity + skew, left=False)


def _butterfly(rows: torch.Tensor, rotation: torch.Tensor, distance: int) -> torch.Tensor:
    """One stage: the two halves of a block are `distance` rows apart."""
    size, width = rotation.shape[-1], rows.shape[-1]
    apart = rows.reshape(-1, 2, distance, width).transpose(1, 2).reshape(-1, size, width)
    mixed = torch.einsum("bij,bjr->bir", rotation, apart)
    return mixed.reshape(-1, distance, 2, width).transpose(1, 2).reshape(rows.shape)


_METHODS = {
    LORA: Method(difference=_lora),
    LOHA: Method(difference=_loha),
    LOKR: Method(difference=_lokr),
    GLORA: Method(merge=_glora),
    IA3: Method(merge=_ia3),
    OFT: Method(merge=_oft),
    FULL: Method(difference=lambda factors, shape: factors["diff"]),
    NORM: Method(difference=lambda factors, shape: factors["w_norm"]),
}
