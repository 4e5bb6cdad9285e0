"""A VAE that replaces a checkpoint's own: a diffusers folder, or a file in one of the layouts."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sdexport.checkpoints.config_files import read_config, update_config, write_config
from sdexport.checkpoints.diffusers_layout import VAE_CLASSES
from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.published_configs import VAE_SD, VAE_SDXL
from sdexport.checkpoints.state_dicts import Tensors, vae_prefix, vae_state
from sdexport.checkpoints.tiny_vae import (
    CLASS_NAME,
    SIDES,
    WITHOUT_EFFECT,
    sides_of,
    tiny_config,
    tiny_state,
    with_side,
)
from sdexport.checkpoints.unused_weights import check_all_used, check_supported_parts
from sdexport.checkpoints.weight_file import WeightFile, merged
from sdexport.checkpoints.weight_origins import origins
from sdexport.checkpoints.weight_sets import files_in
from sdexport.engines.errors import CheckpointError
from sdexport.runtime.adapters.damaged_files import parsing

logger = logging.getLogger(__name__)

_DEFAULT_CHANNELS = 4
_DEFAULT_SCALE = 0.18215
"""scaling_factor of configurations that have none, as in diffusers."""
_OF_XL = re.compile(r"sd_?xl|taesdxl|(^|[^a-z])xl([^a-z]|$)")
_OF_SD = re.compile(r"ft-(mse|ema)|840000|560000|kl-f8|(^|[^a-z])sd-?v?[12]([^a-z]|$)")
_TEXT_OF_XL, _TEXT_OF_SD = "conditioner.", "cond_stage_model."
"""What the text encoders of whole checkpoints begin with."""
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class ReplacementVae:
    """Files of weights that fit a configuration.

    files: one, or the shards, or TAESD's encoder and decoder.
    class_name: one of VAE_CLASSES.
    """

    files: Sequence[WeightFile]
    class_name: str
    config: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, folder: Path, *, allow_pickle: bool = False) -> ReplacementVae:
        """Read a VAE and check that its weights fit, and that all of them are used.

        Args:
          path: a diffusers folder, a pipeline's folder with vae/ in it, or a file; a file is read
            with the configuration of the checkpoint's own VAE, and a TAESD with its own. One side
            of a TAESD brings the other one along, from the same folder.
          folder: of the checkpoint's configurations.
        Raises: FileNotFoundError: nothing is at `path`. CheckpointError: no VAE, or a damaged one.
        """
        path = Path(path)
        own = read_config(folder / "vae" / "config.json")
        is_xl = (folder / "text_encoder_2").is_dir()
        if path.is_dir():
            config: Mapping[str, Any]
            config, paths = _read_folder(path, allow_pickle=allow_pickle)
            files = [WeightFile.open(each, allow_pickle=allow_pickle) for each in paths]
        elif path.is_file():
            files = _with_other_side(WeightFile.open(path, allow_pickle=allow_pickle), allow_pickle)
            config = _config_of(files, own, is_xl=is_xl)
        else:
            raise FileNotFoundError(f"no VAE at {path}: expected a diffusers folder, or a file")
        class_name = str(config.get("_class_name", VAE_CLASSES[0]))
        if class_name not in VAE_CLASSES:
            raise CheckpointError(
                f"{path}: {class_name} is not supported; expected {' or '.join(VAE_CLASSES)}"
            )
        for file in files:
            if file.kind not in ("a VAE", "a Stable Diffusion checkpoint"):
                raise CheckpointError(f"{file.path} is {file.kind}; expected a VAE")
        _check_channels(path, files, config, own)
        vae = cls(files, class_name, config)
        with parsing(f"{path}: not a usable VAE"):
            vae._check_weights(path)
        _warn_of_another_family(path, files, config, own, is_xl=is_xl)
        return vae

    def write_config(self, folder: Path) -> None:
        """Make this the VAE of a checkpoint's configurations."""
        write_config(folder / "vae" / "config.json", self.config)
        update_config(folder / "model_index.json", {"vae": ["diffusers", self.class_name]})

    def load(self) -> Any:
        """The module, for inference in float32."""
        return fill(self._empty(), self._state(merged(self.files)))

    def _check_weights(self, path: Path) -> None:
        named = {n: w for file in self.files for n, w in _of_vae(file.named_weights).items()}
        module = self._empty()
        state = self._state(named)
        left = set(named).union(*(file.others for file in self.files)) - WITHOUT_EFFECT
        left -= origins(state, module.state_dict())
        check_supported_parts(path, left)
        check_shapes(path, "vae", module, state)
        check_all_used(path, "the VAE", left)

    def _empty(self) -> Any:
        return empty(self.class_name, self.config)

    def _state(self, tensors: Tensors) -> Tensors:
        if self.class_name == CLASS_NAME:
            return tiny_state(tensors)
        return vae_state(tensors, self.config)


def _of_vae(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The weights of the VAE; of a whole checkpoint, only those below the VAE's prefix."""
    prefix = vae_prefix(tensors)
    return {name: tensors[name] for name in tensors if name.startswith(prefix)}


def _read_folder(folder: Path, *, allow_pickle: bool) -> tuple[dict[str, Any], list[Path]]:
    """The configuration, and the files of weights."""
    folder = next((f for f in (folder, folder / "vae") if (f / "config.json").is_file()), folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no VAE: config.json is missing")
    config = read_config(folder / "config.json")
    return config, files_in(folder, "vae", allow_pickle=allow_pickle)


def _with_other_side(file: WeightFile, allow_pickle: bool) -> list[WeightFile]:
    """The file, and if it is one side of a TAESD, the file of the other side.

    Raises: CheckpointError: that is not in the same folder.
    """
    sides = sides_of(file.tensors)
    if len(sides) != 1:
        return [file]
    (side,) = sides
    (other,) = set(SIDES) - sides
    stem = file.path.stem.replace(side, other)
    candidates = [file.path.with_name(stem + suffix) for suffix in (file.path.suffix, *_SUFFIXES)]
    for path in candidates if stem != file.path.stem else ():
        if path.is_file():
            found = WeightFile.open(path, allow_pickle=allow_pickle)
            if sides_of(found.tensors) != {other}:
                raise CheckpointError(f"{path} is not TAESD's {other}")
            return [_named(file, side), _named(found, other)]
    expected = candidates[0].name if stem != file.path.stem else f"one called *_{other}"
    raise CheckpointError(
        f"{file.path} is TAESD's {side} alone; put its {other} ({expected}) into the same folder"
    )


def _named(file: WeightFile, side: str) -> WeightFile:
    return replace(file, tensors=with_side(file.tensors, side))


def _config_of(
    files: Sequence[WeightFile], own: Mapping[str, Any], *, is_xl: bool
) -> Mapping[str, Any]:
    """The configuration of a VAE whose files hold none."""
    shapes = {n: w for file in files for n, w in file.named_weights.items()}
    if sides_of(shapes):
        config = tiny_config(tiny_state(shapes))
        return own if own.get("_class_name") == CLASS_NAME and _same(own, config) else config
    if own.get("_class_name") == CLASS_NAME:
        return {"_class_name": VAE_CLASSES[0], **(VAE_SDXL if is_xl else VAE_SD)}
    return own


def _of_other_name(name: str, *, is_xl: bool) -> bool:
    """Whether the name of a file says another family; the weights of both have the same shapes."""
    if is_xl:
        is_tiny = "taesd" in name and "taesdxl" not in name
        return is_tiny or bool(_OF_SD.search(name) and not _OF_XL.search(name))
    return bool(_OF_XL.search(name))


def _same(own: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return all(own.get(key, value) == value for key, value in config.items())


def _check_channels(
    path: Path, files: Sequence[WeightFile], config: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Raises: CheckpointError: the latents have another number of channels than needed."""
    expected = own.get("latent_channels", _DEFAULT_CHANNELS)
    found = config.get("latent_channels", _DEFAULT_CHANNELS)
    for file in files:
        for name, weight in file.tensors.items():
            if name.endswith("decoder.conv_in.weight") and weight.ndim == 4:
                found = weight.shape[1]
    if found != expected:
        raise CheckpointError(
            f"{path}: its latents have {found} channels, the checkpoint's {expected}"
            + ("; it is made for another family, such as SD 3 or Flux" if found == 16 else "")
        )


def _warn_of_another_family(
    path: Path,
    files: Sequence[WeightFile],
    config: Mapping[str, Any],
    own: Mapping[str, Any],
    *,
    is_xl: bool,
) -> None:
    other = _TEXT_OF_SD if is_xl else _TEXT_OF_XL
    family = "SD 1 and 2" if is_xl else "SDXL"
    scale, expected = (c.get("scaling_factor", _DEFAULT_SCALE) for c in (config, own))
    if scale != expected and CLASS_NAME not in (config.get("_class_name"), own.get("_class_name")):
        logger.warning(
            "%s: its scaling factor is %s, that of the checkpoint's VAE %s; "
            "it may be made for another family",
            path,
            scale,
            expected,
        )
    elif any(name.startswith(other) for file in files for name in file.tensors):
        logger.warning(
            "%s is a whole checkpoint, made for %s; colours may be wrong with its VAE", path, family
        )
    elif _of_other_name(path.name.lower(), is_xl=is_xl):
        logger.warning("%s: by its name it is made for %s; colours may be wrong", path, family)
