"""What LoRAs and other adapters add to the memory that images need; see runtime/memory_need.py."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from sdexport.engines.errors import CheckpointError, PackageError
from sdexport.engines.ov.rewrites.low_rank import LEAST_ROWS
from sdexport.runtime.adapters.lora_folder import files_at
from sdexport.runtime.adapters.lora_inputs import LayerShape, layer_shapes
from sdexport.runtime.adapters.lora_store import CACHE_BYTES
from sdexport.runtime.models.components import (
    AdapterKind,
    ComponentSpec,
    Role,
    adapter_graph,
    lora_graph,
)
from sdexport.runtime.models.controlnet import is_xs
from sdexport.runtime.packages.package import Package

Kinds = frozenset[AdapterKind]
"""The kinds of adapters of a call whose inputs the model's graphs take."""
_FACTORS = 2
"""Bytes of the factors of a LoRA for each byte of its file, which is in float16."""
_ATTENTION = re.compile(
    r"(?:(?P<side>down|up)_blocks\.(?P<block>\d+)|mid_block)\.attentions\.\d+\..+"
)
"""Layers of a UNet whose rows are the places of a level, but for those of _OF_PROMPT."""
_OF_PROMPT = (".attn2.to_k", ".attn2.to_v")


def kinds_of(adapters: Iterable[Package], *, with_loras: bool) -> Kinds:
    """The kinds of a call with adapters of these packages, and perhaps LoRAs."""
    found = {each.family.adapter for each in adapters if not is_xs(each.family)}
    if with_loras:
        found.add(AdapterKind.LORA)
    return frozenset(kind for kind in found if kind is not None)


def graph_for(spec: ComponentSpec, kinds: Kinds) -> str:
    """The graph of a component that takes these kinds of adapters."""
    if spec.role is Role.DENOISER:
        return adapter_graph(spec.name, kinds)
    takes_loras = spec.role is Role.TEXT_ENCODER and AdapterKind.LORA in kinds
    return lora_graph(spec.name) if takes_loras else spec.name


def lora_need(calls: Sequence[Collection[Path]]) -> int:
    """Bytes of the factors of LoRAs in float32: as they are kept, and once more joined for a call.

    Args:
      calls: the files or folders of the LoRAs of each call, one after the other. Those that do not
        exist count nothing.
    """
    sizes = {path: _FACTORS * _file_bytes(path) for paths in calls for path in paths}
    largest = max((sum(sizes[path] for path in set(paths)) for paths in calls), default=0)
    return largest + max(largest, min(sum(sizes.values()), CACHE_BYTES))


def _file_bytes(path: Path) -> int:
    """Bytes of the files of a LoRA; 0 where there is none, as reading it says."""
    try:
        return sum(source.path.stat().st_size for source in files_at(path))
    except (CheckpointError, OSError, ValueError):
        return 0


def merged_weights(
    package: Package, graph: str, rows: int, size: tuple[int, int], *, in_bfloat16: bool
) -> int:
    """Elements of the weights to which OpenVINO adds the factors of LoRAs; see LEAST_ROWS.

    Args:
      graph: of a UNet, that takes LoRAs. rows: of its batch. size: height and width of the latents.
      in_bfloat16: the arithmetic.
    Returns: those of attention blocks; 0 for a package without such a graph.
    """
    try:
        layers = layer_shapes(package.graph_inputs(graph)).values()
    except (PackageError, ValueError):
        return 0  # opening it says what is wrong
    config = package.config(graph.partition(".")[0])
    levels = len(config.get("block_out_channels") or ())

    def is_merged(layer: LayerShape) -> bool:
        match = _ATTENTION.fullmatch(layer.name)
        if match is None or layer.taps > 1 or layer.name.endswith(_OF_PROMPT):
            return False
        block = int(match["block"] or 0)
        level = {"down": block, "up": levels - 1 - block}.get(match["side"], levels - 1)
        places = rows * -(-size[0] // 2**level) * -(-size[1] // 2**level)
        least = LEAST_ROWS["convolution" if layer.kernel else "bf16" if in_bfloat16 else "f32"]
        return bool(places >= least * min(layer.inputs, layer.outputs))

    return sum(layer.inputs * layer.outputs for layer in layers if is_merged(layer))
