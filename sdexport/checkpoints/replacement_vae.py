"""A VAE that replaces a checkpoint's own: a diffusers folder, or one file in either layout."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdexport.checkpoints.config_files import parsing, read_config, update_config, write_config
from sdexport.checkpoints.diffusers_layout import VAE_CLASSES
from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.state_dicts import vae_state
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError

logger = logging.getLogger(__name__)

_WEIGHTS = tuple(
    f"diffusion_pytorch_model{variant}"
    for variant in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
)
_DEFAULT_SCALE = 0.18215
"""scaling_factor of configurations that have none, as in diffusers."""


@dataclass(frozen=True)
class ReplacementVae:
    """A file of weights that fit a configuration.

    class_name: one of VAE_CLASSES.
    """

    file: WeightFile
    class_name: str
    config: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, folder: Path, *, allow_pickle: bool = False) -> ReplacementVae:
        """Read a VAE and check that its weights fit.

        Args:
          path: a diffusers folder, a pipeline's folder with vae/ in it, or a file; a file is read
            with the configuration of the checkpoint's own VAE.
          folder: of the checkpoint's configurations.
        Raises: FileNotFoundError: nothing is at `path`. CheckpointError: no VAE, or a damaged one.
        """
        path = Path(path)
        own = read_config(folder / "vae" / "config.json")
        config = own
        if path.is_dir():
            config, path = _read_folder(path)
        elif not path.is_file():
            raise FileNotFoundError(f"no VAE at {path}: expected a diffusers folder, or a file")
        file = WeightFile.open(path, allow_pickle=allow_pickle)
        class_name = str(config.get("_class_name", VAE_CLASSES[0]))
        if class_name not in VAE_CLASSES:
            raise CheckpointError(
                f"{path}: {class_name} is not supported; expected {' or '.join(VAE_CLASSES)}"
            )
        if file.kind not in ("a VAE", "a Stable Diffusion checkpoint"):
            raise CheckpointError(f"{path} is {file.kind}; expected a VAE")
        vae = cls(file, class_name, config)
        with parsing(f"{path}: not a usable VAE"):
            check_shapes(path, "vae", vae._empty(), vae._state())
        scale, expected = (c.get("scaling_factor", _DEFAULT_SCALE) for c in (config, own))
        if scale != expected:
            logger.warning(
                "%s: its scaling factor is %s, that of the checkpoint's VAE %s; "
                "it may be made for another family",
                path,
                scale,
                expected,
            )
        return vae

    def write_config(self, folder: Path) -> None:
        """Make this the VAE of a checkpoint's configurations."""
        write_config(folder / "vae" / "config.json", self.config)
        update_config(folder / "model_index.json", {"vae": ["diffusers", self.class_name]})

    def load(self) -> Any:
        """The module, for inference in float32."""
        return fill(self._empty(), self._state())

    def _empty(self) -> Any:
        return empty(self.class_name, self.config)

    def _state(self) -> dict[str, torch.Tensor]:
        if self.class_name == "AutoencoderKL":
            return vae_state(self.file.tensors, self.config)
        return dict(self.file.tensors)


def _read_folder(folder: Path) -> tuple[dict[str, Any], Path]:
    """The configuration, and the path of the weights."""
    folder = next((f for f in (folder, folder / "vae") if (f / "config.json").is_file()), folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no VAE: config.json is missing")
    config = read_config(folder / "config.json")
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: vae: missing {_WEIGHTS[0]}")
    return config, path
