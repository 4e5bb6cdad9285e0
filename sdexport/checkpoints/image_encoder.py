"""The CLIP image encoder of an IP-Adapter: a folder that transformers wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from sdexport.checkpoints.config_files import read_config
from sdexport.checkpoints.diffusers_layout import TEXT_ENCODERS
from sdexport.checkpoints.modules import check_shapes, fill
from sdexport.checkpoints.unused_weights import check_all_used
from sdexport.checkpoints.weight_file import WeightFile, merged
from sdexport.checkpoints.weight_origins import origins
from sdexport.checkpoints.weight_sets import files_in
from sdexport.engines.errors import CheckpointError
from sdexport.engines.files import sha256_of
from sdexport.engines.messages import shown

CLASS_NAME = "CLIPVisionModelWithProjection"
_NAME = "image_encoder"
_LARGEST_SIDE = 2048
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_FURTHER = ("image_size", "patch_size", "projection_dim", "num_channels")


@dataclass(frozen=True)
class ImageEncoder:
    """An image encoder whose configuration is supported, and the files of its weights."""

    folder: Path
    written: Mapping[str, Any]
    config: SimpleNamespace
    files: tuple[WeightFile, ...]

    @classmethod
    def open(
        cls, folder: Path, *, variant: str | None = None, allow_pickle: bool = False
    ) -> ImageEncoder:
        """Read the configuration, and check that the weights fit.

        Raises: FileNotFoundError: no such folder. CheckpointError: damaged, incomplete, or another
          kind of model.
        """
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no image encoder at {folder}: expected a folder with config.json"
            )
        written = read_config(folder / "config.json")
        named = written.get("architectures") or [written.get("_class_name")]
        if not isinstance(named, list) or named[:1] != [CLASS_NAME]:
            raise CheckpointError(
                f"{folder}: {shown(named[0] if isinstance(named, list) and named else named)} is "
                f"not supported as an image encoder; expected {CLASS_NAME}"
            )
        config = _config(folder, written)
        paths = files_in(
            folder, TEXT_ENCODERS[0], variant=variant, allow_pickle=allow_pickle
        )  # of transformers, with the same file names
        files = tuple(WeightFile.open(path, allow_pickle=allow_pickle) for path in paths)
        encoder = cls(folder, written, config, files)
        encoder._check()
        return encoder

    def sha256(self) -> list[str]:
        """Of each file of weights."""
        return [sha256_of(file.path) for file in self.files]

    def count_weights(self) -> int:
        """The number of weights."""
        return sum(weight.numel() for weight in self._empty().parameters())

    def load(self) -> Any:
        """The module, for inference in float32."""
        return fill(self._empty(), merged(self.files))

    def _empty(self) -> Any:
        with torch.device("meta"):
            config = transformers.CLIPVisionConfig.from_dict(dict(self.written))
            return transformers.CLIPVisionModelWithProjection(config)

    def _check(self) -> None:
        module = self._empty()
        named = {n: w for file in self.files for n, w in file.named_weights.items()}
        check_shapes(self.folder, _NAME, module, named)
        left = set(named).union(*(file.others for file in self.files))
        left -= origins(named, module.state_dict())
        left = {name for name in left if not name.endswith("position_ids")}
        check_all_used(self.folder, f"a {CLASS_NAME} of this configuration", left)


def _config(folder: Path, written: Mapping[str, Any]) -> SimpleNamespace:
    """The configuration with the defaults of its class.

    Raises: CheckpointError: sizes that make no sense.
    """
    config = SimpleNamespace(**transformers.CLIPVisionConfig.from_dict(dict(written)).to_dict())
    for name in (*_SIZES, *_FURTHER):
        value = getattr(config, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**16:
            raise CheckpointError(f"{folder}: {name} must be a positive number, got {shown(value)}")
    if config.image_size > _LARGEST_SIDE or config.patch_size > config.image_size:
        raise CheckpointError(
            f"{folder}: image_size {config.image_size} and patch_size {config.patch_size} are "
            "not supported"
        )
    return config
