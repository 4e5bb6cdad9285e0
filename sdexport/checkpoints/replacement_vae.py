"""A VAE that replaces a checkpoint's own: a diffusers folder, or one file in either layout."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.single_file import vae_state
from sdexport.checkpoints.weight_file import WeightFile

logger = logging.getLogger(__name__)

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
_WEIGHTS = tuple(
    f"diffusion_pytorch_model{variant}"
    for variant in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
)


@dataclass(frozen=True)
class OtherVae:
    """A file of weights that fit a configuration.

    class_name: of diffusers.
    """

    file: WeightFile
    class_name: str
    config: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, folder: Path, *, allow_pickle: bool = False) -> OtherVae:
        """Check a VAE and write its configuration into a checkpoint's folder.

        Args:
          path: a diffusers folder, a pipeline's folder with vae/ in it, or a file; a file is read
            with the configuration of the checkpoint's own VAE.
          folder: of the checkpoint's configurations.
        Raises: FileNotFoundError, ValueError: no VAE, or one that does not fit.
        """
        path = Path(path)
        own = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        config = own
        if path.is_dir():
            config, path = _read_folder(path)
        elif not path.is_file():
            raise FileNotFoundError(f"no VAE at {path}: expected a folder of diffusers, or a file")
        file = WeightFile.open(path, allow_pickle=allow_pickle)
        class_name = str(config.get("_class_name", CLASSES[0]))
        if class_name not in CLASSES:
            raise ValueError(f"{path}: a {class_name} is not exported; expected {CLASSES[0]}")
        if path == file.path and file.kind not in ("a VAE", "a Stable Diffusion checkpoint"):
            raise ValueError(f"{path} is {file.kind}; expected a VAE")
        vae = cls(file, class_name, config)
        check_shapes(path, "vae", vae._empty(), vae._state())
        scale, expected = config.get("scaling_factor", 0.18215), own.get("scaling_factor", 0.18215)
        if config is not own and scale != expected:
            logger.warning(
                "%s: its scaling factor is %g, the checkpoint's VAE has %g: "
                "it may be made for another family",
                path,
                scale,
                expected,
            )
        (folder / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        index["vae"] = ["diffusers", class_name]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        return vae

    def load(self) -> Any:
        """The module in float32, for inference."""
        return fill(self._empty(), self._state())

    def _empty(self) -> Any:
        return empty(self.class_name, self.config)

    def _state(self) -> dict[str, torch.Tensor]:
        if self.class_name != CLASSES[0]:
            return dict(self.file.tensors)
        return vae_state(self.file.tensors, self.config)


def _read_folder(folder: Path) -> tuple[dict[str, Any], Path]:
    """Configuration and file of weights."""
    folder = next((f for f in (folder, folder / "vae") if (f / "config.json").is_file()), folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: no VAE: config.json is missing") from error
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} is damaged: it holds no JSON object")
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: vae: missing {_WEIGHTS[0]}")
    return config, path
