"""Weights of files that are quantised: float8 with scales is converted, other kinds are named.

A float8 file stores a scale for each layer, under one of several names, and weight times scale is
the layer's weight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from sdexport.engines.errors import CheckpointError
from sdexport.engines.json_text import parse_json
from sdexport.engines.messages import one_line
from sdexport.runtime.adapters.damaged_files import parsing

FORMATS = ("float8_e4m3fn", "float8_e5m2")
"""Formats of ComfyUI's quantised layers that are converted."""

_UNSUPPORTED = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (
            r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state)(\.|$)",
            "bitsandbytes in 4 bits (NF4 or FP4)",
        ),
        (r"\.(SCB|weight_format)$", "bitsandbytes in int8"),
        (r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
        (r"\.(wscales|wtscale|wcscales|smooth_factor\w*)$", "SVDQuant (Nunchaku)"),
        (r"\.(weight_scale_2|pre_quant_scale)$", "NVFP4 or another format with two scales"),
        (r"\.weight_scale_inv$", "float8 with a scale for each block"),
        (r"\.weight(\.|:)(_data|_scale|qdata|scale|zero_point)$", "quanto or torchao"),
    )
)
_ADVICE = "export the float16 or float32 one"
_BY_LAYER = re.compile(r"\.(input_scale|scale_input|comfy_quant)$")
"""Marks of a layer, and scales for computing in float8, which float32 does not need."""
_MARKER = re.compile(r"(^|\.)scaled_fp8$")
_COMFY = ".comfy_quant"
_LONGEST_MARK = 65_536
_METADATA = "_quantization_metadata"


def dequantised(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> Mapping[str, torch.Tensor]:
    """The weights of a file, each float8 layer times its scale when it is read.

    Scales and marks that are used are not among the names; those without a weight are.

    Raises: CheckpointError: a kind of quantisation that is not supported.
    """
    _reject_other_kinds(path, tensors)
    with parsing(f"{path}: cannot read how it is quantised"):
        _check_formats(path, _formats(tensors, metadata))
    scales = {}
    hidden = {name for name in tensors if _MARKER.search(name)}
    for name in tensors:
        weight = _weight_of(name)
        if weight in tensors:
            scales[weight] = _shaped(path, name, tensors[name], tensors[weight])
            hidden.add(name)
        elif f"{name.rpartition('.')[0]}.weight" in tensors and _BY_LAYER.search(name):
            hidden.add(name)
    return DequantisedWeights(tensors, scales, hidden) if hidden else tensors


class DequantisedWeights(Mapping[str, torch.Tensor]):
    """Weights that are multiplied by their scales, in float32, when they are read.

    Args:
      scales: by the name of the weight, in a shape that fits it.
      hidden: names that are no weights.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        scales: Mapping[str, torch.Tensor],
        hidden: Iterable[str],
    ) -> None:
        self._tensors, self._scales = tensors, scales
        without = frozenset(hidden)
        self._names = {name: None for name in tensors if name not in without}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        value = self._tensors[name]
        scale = self._scales.get(name)
        return value if scale is None else value.to(torch.float32) * scale

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _weight_of(name: str) -> str:
    """The weight that a scale belongs to; empty for other names."""
    if name.endswith(".scale_weight"):
        return f"{name.removesuffix('.scale_weight')}.weight"
    return name.removesuffix("_scale") if name.endswith("weight_scale") else ""


def _shaped(path: Path, name: str, scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A scale in a shape that multiplies its weight: one number, or one for each row."""
    if not weight.is_floating_point():
        raise CheckpointError(
            f"{path} is quantised: {name} scales a weight of {weight.dtype}; {_ADVICE}"
        )
    if scale.is_floating_point() and not bool(torch.isfinite(scale.to(torch.float32)).all()):
        raise CheckpointError(f"{path} is damaged: {name} holds NaN or infinity")
    if scale.is_floating_point() and scale.numel() == 1:
        return scale.to(torch.float32).reshape(())
    if scale.is_floating_point() and weight.ndim and scale.numel() == weight.shape[0]:
        return scale.to(torch.float32).reshape(-1, *[1] * (weight.ndim - 1))
    raise CheckpointError(
        f"{path} is quantised with a scale for each block ({name} of shape {tuple(scale.shape)} "
        f"for a weight of {tuple(weight.shape)}), which is not supported; {_ADVICE}"
    )


def _reject_other_kinds(path: Path, names: Iterable[str]) -> None:
    listed = list(names)
    for pattern, kind in _UNSUPPORTED:
        if found := [name for name in listed if pattern.search(name)]:
            raise CheckpointError(
                f"{path} is quantised with {kind} ({len(found)} entries such as "
                f"{one_line(found[0], 80)}), which is not supported; {_ADVICE}"
            )


def _formats(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Each quantised layer with its format, from marks next to the layers and from the metadata."""
    for name, value in tensors.items():
        if name.endswith(_COMFY):
            if value.numel() > _LONGEST_MARK:
                raise ValueError(f"{one_line(name, 80)} is too long for a format")
            settings = json.loads(bytes(value.to(torch.uint8).flatten().tolist()))
            yield name.removesuffix(_COMFY), str(settings["format"])
    if _METADATA in metadata:
        for layer, settings in parse_json(metadata[_METADATA])["layers"].items():
            yield str(layer), str(settings["format"])


def _check_formats(path: Path, formats: Iterable[tuple[str, str]]) -> None:
    for layer, name in formats:
        if name not in FORMATS:
            raise CheckpointError(
                f"{path}: layer {one_line(layer, 80)} is quantised as {one_line(name, 40)}; only "
                f"{' and '.join(FORMATS)} are supported; {_ADVICE}"
            )
