"""What the layers of a built engine do: kinds, types, and how much of the attention was fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdexport.engines import PLAN_BACKENDS, EngineError
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.messages import one_line
from sdexport.engines.trt.engine_layers import (
    Attention,
    EngineLayers,
    Layer,
    in_profiles,
    read_layers,
)

WIDEST_HEAD, NARROWEST_HEAD = 256, 9
"""Sizes of a head that TensorRT-RTX 1.7's fused kernels take, found by building each."""
_HALVES = ("half", "bf16")
NOT_LISTED = "an older sdexport built it; delete the engine and build it again"


def layer_report(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the layers of an engine, as JSON values.

    Args:
      engine: an entry of built_engines.
    Returns: profiles: for each, in their order, layers (how many), kinds and dtypes (counts by
      name), attention (total and fused) and separate (for each attention that is not one kernel its
      node and the reason); layers: all of them. Without a list of the layers: not_listed, the
      reason.
    """
    if engine["backend"] not in PLAN_BACKENDS:
        return {"not_listed": "only the engines of TensorRT have a list of their layers"}
    plan = Path(engine["plan"])
    try:
        found = read_layers(plan, Sidecar.read(plan))
    except (EngineError, OSError) as error:
        return {"not_listed": one_line(error)}
    if found is None:
        return {"not_listed": NOT_LISTED}
    return {
        "profiles": profile_reports(found),
        "layers": [asdict(layer) | {"kind": layer.kind} for layer in found.layers],
    }


def profile_reports(found: EngineLayers) -> list[dict[str, Any]]:
    """For each profile the counts of its layers; see layer_report."""
    profiles = in_profiles(found.layers)
    return [_profile(layers, found.attention) for layers in profiles.values()]


def _profile(layers: Sequence[Layer], attention: Sequence[Attention]) -> dict[str, Any]:
    kernels = [layer for layer in layers if layer.kind == "attention"]
    fused = {node for layer in kernels for node in layer.nodes}
    separate = [each for each in attention if each.node not in fused]
    return {
        "layers": len(layers),
        "kinds": dict(Counter(layer.kind for layer in layers).most_common()),
        "dtypes": dict(Counter(layer.dtype for layer in layers if layer.dtype).most_common()),
        "attention": {"total": len(attention), "fused": len(attention) - len(separate)},
        "separate": [{"node": each.node, "reason": why_separate(each)} for each in separate],
    }


def why_separate(attention: Attention) -> str:
    """Why an attention is not one kernel, and what to do where something can be done."""
    size = attention.head_size
    if attention.dtype not in _HALVES:
        return f"its type is {attention.dtype}; fused kernels take fp16 and bf16"
    if size > WIDEST_HEAD:
        return f"heads of {size}; fused kernels take at most {WIDEST_HEAD}"
    if 0 < size < NARROWEST_HEAD:
        return f"heads of {size}; fused kernels take at least {NARROWEST_HEAD}"
    if not attention.single:
        return "it is written as matrix products and softmax; --opset 23 exports it as one node"
    return "the builder chose separate kernels for these sizes"
