"""A LoRA as a package's graphs take it, read from its files without PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sdexport.engines.errors import CheckpointError, PackageError
from sdexport.engines.messages import one_line
from sdexport.runtime.adapters.bundled_words import bundled_words
from sdexport.runtime.adapters.lora_factors import NotLowRankError, factors_of
from sdexport.runtime.adapters.lora_folder import LoraSource
from sdexport.runtime.adapters.lora_inputs import LayerShape, down_input, layer_shapes
from sdexport.runtime.adapters.lora_layout import read_layout
from sdexport.runtime.adapters.lora_names import LoraNames
from sdexport.runtime.adapters.lora_report import does_not_fit, report, warn_about_prediction
from sdexport.runtime.adapters.lora_roles import split_role
from sdexport.runtime.adapters.lora_settings import PeftSettings
from sdexport.runtime.adapters.safetensors_file import SafetensorsFile
from sdexport.runtime.models.components import lora_graph
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.added_vectors import Vectors

MERGE = "merge it when exporting: sdexport export --lora"
_OF_OTHER_LAYERS = {"w_norm": "norm", "b_norm": "norm"}
"""Roles of layers that take no factors, and the kind of change."""


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """down: as `down_input` returns it. up: (rank, outputs), of a convolution (outputs, rank)."""

    down: np.ndarray
    up: np.ndarray
    rank: int


@dataclass(frozen=True, eq=False)
class LoadedLora:
    """The factors of a LoRA, at scale 1.

    sha256: of its file; of several files, of their hashes. layers: by component and layer.
    words: that are bundled with it, with their vectors.
    """

    sha256: str
    layers: Mapping[str, Mapping[str, LayerFactors]] = field(repr=False)
    words: Mapping[str, Vectors] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        layers = (each for part in self.layers.values() for each in part.values())
        vectors = (rows for word in self.words.values() for rows in word.values())
        size = sum(each.down.nbytes + each.up.nbytes for each in layers)
        return size + sum(rows.nbytes for rows in vectors)


class LoraTarget:
    """What a package's graphs take.

    Raises: PackageError: they take no LoRAs, or their inputs are no factors.
    """

    def __init__(self, package: Package) -> None:
        self.prediction_type = package.manifest.prediction_type
        self.shapes: dict[str, dict[str, LayerShape]] = {}
        self.configs: dict[str, Any] = {}
        family = package.family
        for name in (*(spec.name for spec in family.text_encoders), family.denoiser):
            if name not in package.manifest.components:
                continue
            path = package.model_path(lora_graph(name))
            try:
                self.shapes[name] = layer_shapes(package.graph_inputs(lora_graph(name)))
            except ValueError as error:
                raise PackageError(f"{path}: {error}") from error
            config = SimpleNamespace(**package.config(name))
            self.configs[name] = SimpleNamespace(config=config)
        encoders = [spec.name for spec in family.text_encoders if spec.name in self.configs]
        widths = {
            name: getattr(self.configs[name].config, "hidden_size", None) for name in encoders
        }
        self.widths = {name: each if isinstance(each, int) else 0 for name, each in widths.items()}


def read_lora(sources: Sequence[LoraSource], target: LoraTarget) -> LoadedLora:
    """Read the files of a LoRA, and say what of it does not fit.

    Raises: FileNotFoundError: no such file. CheckpointError: no LoRA, one that is damaged or fits
      no layer, or one that is no sum of factors.
    """
    layers: dict[str, dict[str, LayerFactors]] = {}
    words: dict[str, Vectors] = {}
    digests = []
    for source in sources:
        file = _open(source.path)
        digests.append(file.sha256)
        names, model = _layout(file, source.component, target)
        for part, name, factors in _layers(file, names, model, target):
            layers.setdefault(part, {})[name] = factors
        words |= bundled_words(file, names.embeddings, target.widths)
        warn_about_prediction(file, target.prediction_type)
    digest = digests[0] if len(digests) == 1 else _digest(digests)
    return LoadedLora(digest, layers, words)


def lora_digest(sources: Sequence[LoraSource]) -> str:
    """LoadedLora.sha256 of these files."""
    digests = [_open(source.path).sha256 for source in sources]
    return digests[0] if len(digests) == 1 else _digest(digests)


def _digest(digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _open(path: Path) -> SafetensorsFile:
    if path.suffix in (".bin", ".pt", ".ckpt", ".pth"):
        raise CheckpointError(
            f"{path} is a pickle, which is not read at run time; convert it to .safetensors, or "
            f"{MERGE} {path.name} --allow-pickle"
        )
    try:
        return SafetensorsFile.read(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no LoRA at {path}") from None


def _layout(
    file: SafetensorsFile, component: str | None, target: LoraTarget
) -> tuple[LoraNames, str | None]:
    """See read_layout."""
    for name in file.tensors:
        role = (split_role(name) or ("", ""))[1]
        if role in _OF_OTHER_LAYERS:
            raise _not_low_rank(file, name, _OF_OTHER_LAYERS[role])
    return read_layout(file, target.shapes, component, kind="no file of LoRA weights")


def _layers(
    file: SafetensorsFile, names: LoraNames, model: str | None, target: LoraTarget
) -> Iterator[tuple[str, str, LayerFactors]]:
    settings = PeftSettings.read(file.path, file.metadata)
    for (part, name), roles in names.layers.items():
        tensors = {role: file.tensors[of_role] for role, of_role in roles.items()}
        where = f"{part}: {name}"
        try:
            shape = target.shapes[part][name]
            pair = factors_of(tensors, shape, partial(settings.ratio, part, name))
        except NotLowRankError as error:
            raise _not_low_rank(file, where, str(error)) from error
        except (CheckpointError, MemoryError):
            raise
        except Exception as error:  # shapes that do not fit may raise anything in NumPy
            problem = one_line(error, 200)
            raise does_not_fit(file, where, problem, model, target.configs) from error
        up = pair.up if shape.kernel else np.ascontiguousarray(pair.up.T)
        yield part, name, LayerFactors(down_input(pair.down), up, len(pair.down))
    report(file, names, model, target.configs)


def _not_low_rank(file: SafetensorsFile, where: str, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{file.path}: {where}: {kind} is no sum of factors of low rank, so that it cannot be "
        f"applied at run time; {MERGE} {file.path.name}"
    )
