"""A checkpoint in one file, in the original layout of CompVis and Stability.

The file holds weights alone: its family is recognised by their names, its configurations are the
published ones (published_configs.py), and its tokenizer comes from a folder.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdexport.checkpoints.config_files import write_config
from sdexport.checkpoints.diffusers_layout import TEXT_ENCODERS, tokenizer_folder
from sdexport.checkpoints.file_family import family_of
from sdexport.checkpoints.file_metadata import check_metadata
from sdexport.checkpoints.file_prediction import MARKS, check_prediction_type
from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.published_configs import FAMILIES, SingleFileFamily
from sdexport.checkpoints.state_dicts import (
    EMA_PREFIX,
    Tensors,
    ema_name,
    original_text_state,
    unet_state,
    vae_prefix,
    vae_state,
)
from sdexport.checkpoints.unused_weights import (
    SINGLE_FILE_CHECKER,
    check_all_used,
    check_supported_parts,
    listed,
)
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.checkpoints.weight_origins import origins
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.text.special_tokens import BOS, EOS

logger = logging.getLogger(__name__)

_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_LAYER = re.compile(r"\.(attentions|transformer_blocks|resnets)\.\d+\.")
_WHOLE_LAYER = 8
"""Fewest weights of a layer of the UNet."""
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")


@dataclass(frozen=True)
class SingleFile:
    """A file of a known family whose weights fit the family's configurations.

    family: with this file's own settings filled in.
    has_vae: False for files that need another file's VAE.
    ema: whether the UNet's averaged weights are used.
    """

    file: WeightFile
    family: SingleFileFamily
    has_vae: bool
    ema: bool

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        allow_pickle: bool = False,
        prediction_type: str | None = None,
        ema: bool = False,
        families: Sequence[SingleFileFamily] = FAMILIES,
    ) -> SingleFile:
        """Recognise a file and check the shape of every weight, without reading the weights.

        Args:
          prediction_type: overrides what the file says; default the family's own.
          ema: take the averaged weights of the UNet, which some files hold in addition.
          families: to choose from.
        Raises: FileNotFoundError: no such file. CheckpointError: see WeightFile.open; no Stable
          Diffusion checkpoint, or weights that are missing or of another shape.
        """
        check_prediction_type(prediction_type)
        file = WeightFile.open(path, allow_pickle=allow_pickle)
        family = family_of(file, families, prediction_type)
        if ema and not any(name.startswith(EMA_PREFIX) for name in file.tensors):
            raise CheckpointError(f"{path}: no averaged weights ({EMA_PREFIX}) in it; omit --ema")
        opened = cls(file, family, bool(vae_prefix(file.tensors)), ema)
        opened._check_weights()
        check_metadata(file, family)
        return opened

    def write_configs(self, folder: Path, tokenizer: Path | None) -> None:
        """Write everything that a diffusers folder holds in addition to weights.

        Args:
          tokenizer: a folder with vocab.json and merges.txt, or one with tokenizer/ inside.
        Raises: InvalidArgumentError: `tokenizer` is None. CheckpointError: it holds no tokenizer.
        """
        family = self.family
        index: dict[str, Any] = {"_class_name": family.pipeline, **family.index}
        index["scheduler"] = ["diffusers", family.scheduler["_class_name"]]
        for part, config in (("unet", family.unet), ("vae", family.vae)):
            index[part] = ["diffusers", _CLASSES[part]]
            write_config(folder / part / "config.json", {"_class_name": _CLASSES[part], **config})
        write_config(folder / "scheduler" / "scheduler_config.json", family.scheduler)
        if TEXT_ENCODERS[0] not in family.text_encoders:
            index[TEXT_ENCODERS[0]] = index[tokenizer_folder(TEXT_ENCODERS[0])] = [None, None]
        for part, layout in family.text_encoders.items():
            name = tokenizer_folder(part)
            index |= {part: ["transformers", layout.class_name]}
            index |= {name: ["transformers", "CLIPTokenizer"]}
            architecture = {"architectures": [layout.class_name]}
            write_config(folder / part / "config.json", {**architecture, **layout.config})
            source = _find_tokenizer(self.file.path, tokenizer, name)
            _copy_tokenizer(source, folder / name, layout.pad_token)
        write_config(folder / "model_index.json", dict(sorted(index.items())))

    def load(self, part: str) -> Any:
        """The module of "unet", "vae" or a text encoder; see modules.fill."""
        return fill(self._empty(part), self._state(part, self.file.weights))

    def _check_weights(self) -> None:
        """Check that each component finds its weights, and that none is left over."""
        weights = self.file.named_weights
        parts = (*self.family.text_encoders, "unet", *(["vae"] if self.has_vae else []))
        states, modules = {}, {}
        left = {*weights, *self.file.others} - MARKS - self._replaced(weights)
        for part in parts:
            with parsing(f"{self.file.path}: {part}: cannot find its weights"):
                states[part] = self._state(part, weights)
                modules[part] = self._empty(part)
            left -= origins(states[part], modules[part].state_dict())
        check_supported_parts(self.file.path, left)
        self._check_depth(modules["unet"], states["unet"])
        for part in parts:
            check_shapes(self.file.path, part, modules[part], states[part])
        check_all_used(self.file.path, self.family.name, left)
        if any(name.startswith(SINGLE_FILE_CHECKER) for name in left):
            logger.warning(
                "%s: its safety checker is not exported, so images are not checked: only that of a "
                "diffusers folder is",
                self.file.path,
            )

    def _check_depth(self, unet: Any, state: Tensors) -> None:
        """Raises: CheckpointError: layers of the UNet are missing, and nothing else."""
        missing = [name for name in unet.state_dict() if name not in state]
        if len(missing) >= _WHOLE_LAYER and all(_LAYER.search(name) for name in missing):
            raise CheckpointError(
                f"{self.file.path}: unet: {listed(missing)} are missing; it may be a pruned model, "
                "such as SSD-1B or Segmind Vega: export its diffusers folder"
            )

    def _replaced(self, names: Iterable[str]) -> set[str]:
        """Weights that are not used because of what the family or an option says."""
        unused = {
            f"{layout.prefix}transformer.resblocks.{layout.config['num_hidden_layers']}."
            for layout in self.family.text_encoders.values()
            if layout.openclip and not layout.projected  # the layer after the last one that is used
        }
        found = {name for name in names if name.startswith(tuple(unused))}
        if self.ema:
            found |= {name for name in names if ema_name(name) in self.file.tensors}
        return found

    def _state(self, part: str, tensors: Tensors) -> dict[str, torch.Tensor]:
        """The weights of a component under the names of its module, and possibly others."""
        if part == "unet":
            return unet_state(tensors, self.family.unet, ema=self.ema)
        if part == "vae":
            return vae_state(tensors, self.family.vae)
        return original_text_state(tensors, self.family.text_encoders[part])

    def _empty(self, part: str) -> Any:
        if part in _CLASSES:
            return empty(_CLASSES[part], getattr(self.family, part))
        layout = self.family.text_encoders[part]
        return empty(layout.class_name, layout.config)


def _find_tokenizer(path: Path, folder: Path | None, name: str) -> Path:
    if folder is None:
        raise InvalidArgumentError(
            f"{path}: a single file holds no tokenizer; give --tokenizer FOLDER, "
            "with CLIP's vocab.json and merges.txt"
        )
    for candidate in (folder / name, folder / "tokenizer", folder):
        if (candidate / "tokenizer.json").is_file() or all(
            (candidate / file).is_file() for file in ("vocab.json", "merges.txt")
        ):
            return candidate
    raise CheckpointError(
        f"no tokenizer in {folder}: expected vocab.json and merges.txt, or tokenizer.json"
    )


def _copy_tokenizer(source: Path, target: Path, pad_token: str) -> None:
    """Copy the vocabulary, and write the settings for its text encoder."""
    target.mkdir(parents=True)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": pad_token,
    }
    write_config(target / "tokenizer_config.json", settings)
