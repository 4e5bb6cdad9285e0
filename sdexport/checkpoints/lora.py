"""LoRA: small changes to a checkpoint's weights, merged into them before the export.

A layer's weight W becomes W + scale * alpha / rank * up @ down, in float32.
Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; its convolutions: LyCORIS, arXiv 2309.14859.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdexport.checkpoints.lora_names import layer_keys, other_method, part_and_key, split_name
from sdexport.checkpoints.weight_file import WeightFile

logger = logging.getLogger(__name__)

LARGEST_SCALE = 100.0
_METADATA = "lora_adapter_metadata"


@dataclass
class Layer:
    """What a file holds for one layer; alpha over rank is its own scale."""

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    mid: torch.Tensor | None = None
    alpha: torch.Tensor | None = None

    def change(self, shape: Sequence[int], alpha: float | None) -> torch.Tensor:
        """The change of a weight of this shape, at scale 1, float32.

        Args:
          alpha: where the file has none for this layer; default the rank.
        Raises: ValueError: the shapes do not belong together.
        """
        if self.down is None or self.up is None:
            raise ValueError("one of its two matrices is missing")
        down, up = self.down.to(torch.float32), self.up.to(torch.float32)
        if down.ndim < 2 or up.ndim < 2 or up[0, 0].numel() != 1 or up.shape[1] != down.shape[0]:
            raise ValueError(f"shapes {tuple(up.shape)} and {tuple(down.shape)} do not multiply")
        rank = down.shape[0]
        up = up.flatten(1)
        if self.mid is None:
            product = (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
        else:
            mid = self.mid.to(torch.float32)
            product = torch.einsum("op,pqkl,qi->oikl", up, mid, down.flatten(1))
        if product.numel() != math.prod(shape) or product.shape[0] != shape[0]:
            raise ValueError(f"expected a change of {tuple(shape)}, got {tuple(product.shape)}")
        own = rank if alpha is None else alpha
        own = own if self.alpha is None else float(self.alpha)
        return product.reshape(tuple(shape)) * (own / rank)


@dataclass(frozen=True)
class Lora:
    """A file and the layers of a checkpoint that it changes.

    layers: by part and name of the layer. alphas: default alpha by part and layer, from metadata.
    """

    file: WeightFile
    scale: float
    layers: Mapping[str, Mapping[str, Layer]] = field(repr=False)
    alphas: Mapping[tuple[str, str], float] = field(repr=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        scale: float,
        modules: Mapping[str, Any],
        *,
        allow_pickle: bool = False,
    ) -> Lora:
        """Find the layer of every weight.

        Args:
          scale: of the whole change, -100..100.
          modules: by part; they may be without weights.
        Raises: FileNotFoundError, ValueError: see WeightFile.open; ValueError: no LoRA, a method
          that cannot be merged, none of it fits, or shapes that do not.
        """
        file = WeightFile.open(path, allow_pickle=allow_pickle)
        if method := next(filter(None, map(other_method, file.tensors)), None):
            raise ValueError(f"{path}: {method} layers are not merged; expected plain LoRA layers")
        if file.kind != "a LoRA":
            raise ValueError(f"{path} is {file.kind}; expected a LoRA")
        layers, strange = _match(file.tensors, modules)
        total = len(file.tensors)
        if not layers:
            raise ValueError(
                f"{path}: none of its {total} weights fits this checkpoint, such as {strange[0]}; "
                "it may be made for another family"
            )
        if strange:
            logger.warning(
                "%s: %d of %d weights fit nothing in this checkpoint and are left out, such as %s",
                path,
                len(strange),
                total,
                strange[0],
            )
        lora = cls(file, scale, layers, _metadata_alphas(file, layers))
        lora._check(modules)
        return lora

    def merge_into(self, part: str, module: Any) -> None:
        """Give a part's layers changed weights; the old ones, perhaps pages of a file, stay."""
        for name, layer in self.layers.get(part, {}).items():
            target = module.get_submodule(name)
            change = layer.change(target.weight.shape, self.alphas.get((part, name)))
            merged = torch.add(target.weight.detach().float(), change, alpha=self.scale)
            target.weight = torch.nn.Parameter(merged, requires_grad=False)

    def _check(self, modules: Mapping[str, Any]) -> None:
        for part, layers in self.layers.items():
            for name, layer in layers.items():
                weight = modules[part].get_submodule(name).weight
                empty = Layer(*(None if t is None else t.to("meta") for t in _matrices(layer)))
                try:
                    empty.change(weight.shape, None)
                except (ValueError, RuntimeError) as error:
                    raise ValueError(
                        f"{self.file.path}: {part}: {name}: {str(error)[:200]}; "
                        "the LoRA may be made for another family"
                    ) from error
                for tensor in (*_matrices(layer), layer.alpha):
                    if tensor is not None and not torch.isfinite(tensor).all():
                        raise ValueError(f"{self.file.path}: {part}: {name} holds NaN or infinity")


def parse_lora(text: str) -> tuple[Path, float]:
    """FILE or FILE:SCALE; a name with colons in it is taken whole if there is such a file.

    Raises: FileNotFoundError: no such file. ValueError: the scale is no number of -100..100.
    """
    if Path(text).is_file():
        return Path(text), 1.0
    name, _, number = text.rpartition(":")
    if not name or not Path(name).is_file():
        raise FileNotFoundError(f"no LoRA at {text}: expected FILE or FILE:SCALE")
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not abs(scale) <= LARGEST_SCALE:  # NaN compares to nothing
        raise ValueError(
            f"{name}: expected a scale of -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}, got {number!r}"
        )
    return Path(name), scale


def _matrices(layer: Layer) -> tuple[torch.Tensor | None, ...]:
    return layer.down, layer.up, layer.mid


def _match(
    tensors: Mapping[str, torch.Tensor], modules: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Layer]], list[str]]:
    """The layers by part and name, and the names that fit none."""
    keys = {part: layer_keys(part, module) for part, module in modules.items()}
    layers: dict[str, dict[str, Layer]] = {}
    strange = []
    for name, tensor in tensors.items():
        split = split_name(name)
        part, key = part_and_key(split[0]) if split else ("", "")
        layer_name = keys.get(part, {}).get(key)
        if split is None or layer_name is None:
            strange.append(name)
            continue
        setattr(layers.setdefault(part, {}).setdefault(layer_name, Layer()), split[1], tensor)
    return layers, strange


def _metadata_alphas(
    file: WeightFile, layers: Mapping[str, Mapping[str, Layer]]
) -> dict[tuple[str, str], float]:
    """Alphas from the settings of PEFT: in the file's header, or adapter_config.json beside it."""
    beside = file.path.with_name("adapter_config.json")
    text = file.metadata.get(_METADATA)
    if text is None and file.path.stem == "adapter_model" and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    try:
        settings = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f"{file.path}: its LoRA settings are damaged: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file.path}: its LoRA settings are damaged: no JSON object")
    alphas = {}
    for part, named in layers.items():
        own = {k.removeprefix(f"{part}."): v for k, v in settings.items()}
        for name, layer in named.items():
            pattern = own.get("alpha_pattern") or {}
            alpha = next((v for k, v in pattern.items() if _ends_with(name, k)), None)
            alpha = own.get("lora_alpha") if alpha is None else alpha
            if alpha is not None and layer.down is not None:
                root = math.sqrt(layer.down.shape[0]) if own.get("use_rslora") else 1.0
                alphas[part, name] = float(alpha) * root
    return alphas


def _ends_with(name: str, pattern: str) -> bool:
    name, pattern = name.removeprefix("text_model."), pattern.removeprefix("text_model.")
    return name == pattern or name.endswith(f".{pattern}")
