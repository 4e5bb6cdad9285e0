"""LoRA: low-rank changes to a checkpoint's weights, merged into them before the export.

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

from sdexport.checkpoints.config_files import parsing
from sdexport.checkpoints.lora_names import layer_keys, other_method, part_and_key, split_name
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.engines.messages import one_line

logger = logging.getLogger(__name__)

LARGEST_SCALE = 100.0
_METADATA = "lora_adapter_metadata"


@dataclass
class Layer:
    """The tensors that a file holds for one layer."""

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    mid: torch.Tensor | None = None
    alpha: torch.Tensor | None = None

    def change(self, shape: Sequence[int], alpha: float | None) -> torch.Tensor:
        """The change of a weight at scale 1, float32 and of this shape.

        Args:
          alpha: used if the file has none for this layer; default the rank.
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

    def check(self, shape: Sequence[int]) -> None:
        """Check shapes, without computing, and values.

        Raises: ValueError, RuntimeError: what is wrong.
        """
        matrices = (self.down, self.up, self.mid)
        Layer(*(None if t is None else t.to("meta") for t in matrices)).change(shape, None)
        if self.alpha is not None and self.alpha.numel() != 1:
            raise ValueError(f"alpha has {self.alpha.numel()} values, expected one")
        for tensor in (*matrices, self.alpha):
            if tensor is not None and not torch.isfinite(tensor).all():
                raise ValueError("it holds NaN or infinity")


@dataclass(frozen=True)
class Lora:
    """A LoRA file and the layers of a checkpoint that it changes.

    layers: by component and name of the layer.
    alphas: default alpha by component and layer, from the file's metadata.
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
        """Read a file and find the layer of every weight.

        Args:
          scale: of the whole change, -100..100.
          modules: by component; they need no weights.
        Raises: FileNotFoundError: no such file. CheckpointError: see WeightFile.open; no LoRA, an
          unsupported method, no layer that fits, or shapes that do not.
        """
        file = WeightFile.open(path, allow_pickle=allow_pickle)
        if method := next(filter(None, map(other_method, file.tensors)), None):
            raise CheckpointError(
                f"{path}: {method} layers are not supported; expected plain LoRA layers"
            )
        if file.kind != "a LoRA":
            raise CheckpointError(f"{path} is {file.kind}; expected a LoRA")
        layers, unmatched = _match(file.tensors, modules)
        total = len(file.tensors)
        if not layers:
            raise CheckpointError(
                f"{path}: none of its {total} weights fits this checkpoint, such as "
                f"{unmatched[0]}; it may be made for another family"
            )
        if unmatched:
            logger.warning(
                "%s: %d of %d weights fit no layer of this checkpoint and are ignored, such as %s",
                path,
                len(unmatched),
                total,
                unmatched[0],
            )
        for part, of_part in layers.items():
            for name, layer in of_part.items():
                _check(f"{path}: {part}: {name}", layer, modules[part].get_submodule(name))
        return cls(file, scale, layers, _default_alphas(file, layers))

    def merge_into(self, part: str, module: Any) -> None:
        """Give a component's layers new weights; the old ones may be mapped and do not change."""
        for name, layer in self.layers.get(part, {}).items():
            target = module.get_submodule(name)
            change = layer.change(target.weight.shape, self.alphas.get((part, name)))
            merged = torch.add(target.weight.detach().float(), change, alpha=self.scale)
            target.weight = torch.nn.Parameter(merged, requires_grad=False)


def parse_lora(text: str) -> tuple[Path, float]:
    """Path and scale of an argument FILE or FILE:SCALE; a file with colons in its name is found.

    Raises: FileNotFoundError: no such file. InvalidArgumentError: the scale is not a number of
      -100..100.
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
    if not abs(scale) <= LARGEST_SCALE:  # true for NaN as well
        raise InvalidArgumentError(
            f"{name}: expected a scale of -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}, got {number!r}"
        )
    return Path(name), scale


def _check(what: str, layer: Layer, target: Any) -> None:
    try:
        layer.check(target.weight.shape)
    except (ValueError, RuntimeError) as error:  # PyTorch's own are RuntimeErrors
        raise CheckpointError(
            f"{what}: {one_line(error, 200)}; the LoRA is damaged or made for another family"
        ) from error


def _match(
    tensors: Mapping[str, torch.Tensor], modules: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Layer]], list[str]]:
    """The layers by component and name, and the names of the weights that fit none."""
    keys = {part: layer_keys(part, module) for part, module in modules.items()}
    layers: dict[str, dict[str, Layer]] = {}
    unmatched = []
    for name, tensor in tensors.items():
        split = split_name(name)
        part, key = part_and_key(split[0]) if split else ("", "")
        layer_name = keys.get(part, {}).get(key)
        if split is None or layer_name is None:
            unmatched.append(name)
            continue
        setattr(layers.setdefault(part, {}).setdefault(layer_name, Layer()), split[1], tensor)
    return layers, unmatched


def _default_alphas(
    file: WeightFile, layers: Mapping[str, Mapping[str, Layer]]
) -> dict[tuple[str, str], float]:
    """The alphas that PEFT's settings give, by component and layer."""
    alphas = {}
    with parsing(f"{file.path}: its LoRA settings are damaged"):
        settings = _peft_settings(file)
        for part, of_part in layers.items():
            own = {key.removeprefix(f"{part}."): value for key, value in settings.items()}
            pattern = own.get("alpha_pattern") or {}
            for name, layer in of_part.items():
                alpha = next((v for k, v in pattern.items() if _ends_with(name, k)), None)
                alpha = own.get("lora_alpha") if alpha is None else alpha
                if alpha is not None and layer.down is not None:
                    root = math.sqrt(layer.down.shape[0]) if own.get("use_rslora") else 1.0
                    alphas[part, name] = float(alpha) * root
    return alphas


def _peft_settings(file: WeightFile) -> dict[str, Any]:
    """From the file's header, or from adapter_config.json next to an adapter_model file."""
    sidecar = file.path.with_name("adapter_config.json")
    text = file.metadata.get(_METADATA)
    if text is None and file.path.stem == "adapter_model" and sidecar.is_file():
        text = sidecar.read_text(encoding="utf-8")
    settings = json.loads(text) if text else {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file.path}: its LoRA settings are damaged: no JSON object")
    return settings


def _ends_with(name: str, pattern: str) -> bool:
    name, pattern = name.removeprefix("text_model."), pattern.removeprefix("text_model.")
    return name == pattern or name.endswith(f".{pattern}")
