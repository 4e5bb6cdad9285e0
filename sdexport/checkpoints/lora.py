"""LoRA: small changes to a checkpoint's weights, merged into them before the export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sdexport.checkpoints.lora_layer import Layer
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import one_line
from sdexport.runtime.adapters.lora_layout import read_layout
from sdexport.runtime.adapters.lora_report import does_not_fit, report
from sdexport.runtime.adapters.lora_settings import PeftSettings


@dataclass(frozen=True)
class Lora:
    """A LoRA file and the layers of a checkpoint that it changes.

    layers: by component and name of the layer.
    embeddings: the vectors of the words that the file brings along, by word and key.
    """

    file: WeightFile
    scale: float
    layers: Mapping[str, Mapping[str, Layer]] = field(repr=False)
    embeddings: Mapping[str, Mapping[str, torch.Tensor]] = field(repr=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        scale: float,
        modules: Mapping[str, Any],
        *,
        component: str | None = None,
        allow_pickle: bool = False,
    ) -> Lora:
        """Read a file and find the layer of every weight.

        Args:
          scale: of the whole change, -100..100.
          modules: by component; they need no weights.
          component: the one that names without a prefix belong to, if that is known.
        Raises: FileNotFoundError: no such file. CheckpointError: see WeightFile.open; no LoRA, an
          unsupported method, no layer that fits, or shapes that do not.
        """
        file = WeightFile.open(path, allow_pickle=allow_pickle)
        layers_of = {part: _layers_of(module) for part, module in modules.items()}
        names, model = read_layout(file, layers_of, component, kind=file.kind)
        settings = PeftSettings.read(file.path, file.metadata)
        layers: dict[str, dict[str, Layer]] = {}
        for (part, name), roles in names.layers.items():
            shape = modules[part].get_submodule(name).weight.shape
            tensors = {role: file.tensors[of_role] for role, of_role in roles.items()}
            try:
                layer = Layer.of(tensors, shape, partial(settings.ratio, part, name))
            except CheckpointError:
                raise
            except MemoryError:
                raise
            except Exception as error:  # shapes that do not fit may raise anything in PyTorch
                problem = one_line(error, 200)
                where = f"{part}: {name}"
                raise does_not_fit(file, where, problem, model, modules) from error
            layers.setdefault(part, {})[name] = layer
        report(file, names, model, modules)
        words = {
            word: {key: file.tensors[name] for key, name in keys.items()}
            for word, keys in names.embeddings.items()
        }
        return cls(file, scale, layers, words)

    def merge_into(self, part: str, module: Any) -> None:
        """Give a component's layers new weights; the old ones may be mapped and do not change.

        Raises: CheckpointError: a merged weight is too large for float32.
        """
        for name, layer in self.layers.get(part, {}).items():
            target = module.get_submodule(name)
            for what, value in layer.merge_into(target, self.scale).items():
                if not torch.isfinite(value).all():
                    raise CheckpointError(
                        f"{self.file.path}: {part}: {name}: the merged {what} holds NaN or "
                        f"infinity; the scale {self.scale:g} or the LoRA is too large"
                    )
                setattr(target, what, torch.nn.Parameter(value, requires_grad=False))


def _layers_of(module: Any) -> list[str]:
    """The names of the layers that have a weight."""
    suffix = ".weight"
    names = (name for name, _ in module.named_parameters())
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
