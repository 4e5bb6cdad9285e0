"""A checkpoint in one file, in the original layout of CompVis and Stability.

The file holds weights alone: its family is recognised by their names, its configurations are the
published ones (published_configs.py), and its tokenizer comes from a folder. The names are
translated by the converters of diffusers.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.published_configs import FAMILIES, Family, TextLayout
from sdexport.checkpoints.weight_file import WeightFile

logger = logging.getLogger(__name__)

PREDICTION_TYPES = ("epsilon", "v_prediction")
_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_BASE_SIZE = 64
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
_OTHER_CHANNELS = {5: "depth-to-image", 7: "upscaling", 8: "instruct-pix2pix"}

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class SingleFile:
    """A file whose family is known and whose weights fit the family's configurations.

    family: with the configurations of this very file filled in.
    has_vae: False for files that rely on another one's.
    """

    file: WeightFile
    family: Family
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
        families: Sequence[Family] = FAMILIES,
    ) -> SingleFile:
        """Recognise a file and check the shape of every weight, without reading the weights.

        Args:
          prediction_type: what the file itself does not tell; default the family's own.
          ema: take the averaged weights of the UNet, which some files hold beside the others.
          families: to choose from.
        Raises: FileNotFoundError, ValueError: see WeightFile.open; ValueError: no Stable Diffusion
          checkpoint, or weights that are missing or of another shape.
        """
        file = WeightFile.open(path, allow_pickle=allow_pickle)
        family = _recognise(file, families)
        family = _with_channels(file, family)
        family = _with_prediction(file, family, prediction_type)
        if ema and not any(name.startswith("model_ema.") for name in file.tensors):
            raise ValueError(f"{path}: no averaged weights (model_ema.) in it; leave out --ema")
        has_vae = any(name.startswith(_VAE) for name in file.tensors)
        opened = cls(file, family, has_vae, ema)
        for part in (*family.text_encoders, "unet", *(["vae"] if has_vae else [])):
            opened._check(part)
        return opened

    def write_configs(self, folder: Path, tokenizer: Path | None) -> None:
        """Write what a diffusers folder holds besides weights.

        Args:
          tokenizer: a folder with vocab.json and merges.txt, or one with tokenizer/ inside.
        Raises: FileNotFoundError: no tokenizer there, or none was given.
        """
        index: dict[str, Any] = {"_class_name": self.family.pipeline, **self.family.index}
        index["scheduler"] = ["diffusers", self.family.scheduler["_class_name"]]
        index["unet"] = ["diffusers", "UNet2DConditionModel"]
        index["vae"] = ["diffusers", "AutoencoderKL"]
        _write(
            folder / "unet" / "config.json", {"_class_name": index["unet"][1], **self.family.unet}
        )
        _write(folder / "vae" / "config.json", {"_class_name": index["vae"][1], **self.family.vae})
        _write(folder / "scheduler" / "scheduler_config.json", self.family.scheduler)
        if "text_encoder" not in self.family.text_encoders:
            index["text_encoder"] = index["tokenizer"] = [None, None]
        for part, layout in self.family.text_encoders.items():
            name = part.replace("text_encoder", "tokenizer")
            index |= {part: ["transformers", layout.class_name]}
            index |= {name: ["transformers", "CLIPTokenizer"]}
            architecture = {"architectures": [layout.class_name]}
            _write(folder / part / "config.json", {**architecture, **layout.config})
            source = _tokenizer_folder(self.file.path, tokenizer, name)
            _copy_tokenizer(source, folder / name, layout.pad_token)
        _write(folder / "model_index.json", dict(sorted(index.items())))

    def load(self, part: str) -> Any:
        """The module of "unet", "vae" or a text encoder; see modules.fill."""
        return fill(_empty(part, self.family), self._state(part, self.file.tensors))

    def _check(self, part: str) -> None:
        shapes = {k: torch.empty_like(v, device="meta") for k, v in self.file.tensors.items()}
        try:
            found = self._state(part, shapes)
        except (KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{self.file.path}: {part}: cannot find its weights: {error}"
            ) from error
        check_shapes(self.file.path, part, _empty(part, self.family), found)

    def _state(self, part: str, tensors: Tensors) -> dict[str, torch.Tensor]:
        """The weights of a part under the names of its module, and perhaps more of them."""
        if part == "unet":
            return _unet_state(tensors, self.family.unet, ema=self.ema)
        if part == "vae":
            return vae_state(tensors, self.family.vae)
        return _text_state(tensors, self.family.text_encoders[part])


def vae_state(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a VAE, from a whole checkpoint or a file of its own, in either layout."""
    names = {k.removeprefix(_VAE).removeprefix("vae."): v for k, v in tensors.items()}
    if any(name.startswith("encoder.down_blocks.") for name in names):
        return {_new_attention_name(name): _linear(name, value) for name, value in names.items()}
    found = {
        k: v for k, v in names.items() if k.startswith(("encoder.", "decoder.", "quant", "post"))
    }
    return dict(convert_ldm_vae_checkpoint(found, dict(config)))


def _new_attention_name(name: str) -> str:
    """diffusers renamed these layers; files from before remain, such as sd-vae-ft-mse."""
    for old, new in _OLD_ATTENTION.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _linear(name: str, value: torch.Tensor) -> torch.Tensor:
    is_wide = ".attentions." in name and value.ndim == 4
    return value[:, :, 0, 0] if is_wide else value


def _unet_state(
    tensors: Tensors, config: Mapping[str, Any], *, ema: bool
) -> dict[str, torch.Tensor]:
    names = [name for name in tensors if name.startswith(_UNET)]
    source: Callable[[str], str] = _ema_name if ema else str
    found = {name: tensors[source(name)] for name in names if source(name) in tensors}
    return dict(convert_ldm_unet_checkpoint(found, dict(config)))


def _ema_name(name: str) -> str:
    """Averaged weights are stored under the name without its dots."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def _text_state(tensors: Tensors, layout: TextLayout) -> dict[str, torch.Tensor]:
    names = {k: v for k, v in tensors.items() if k.startswith(layout.prefix)}
    if layout.openclip:
        model = SimpleNamespace(config=SimpleNamespace(**layout.config))
        found = convert_open_clip_checkpoint(model, names, prefix=layout.prefix)
    else:
        found = {k.removeprefix(layout.prefix): v for k, v in names.items()}
    return text_state(found, layout.class_name)


def text_state(tensors: Tensors, class_name: str) -> dict[str, torch.Tensor]:
    """The weights of a text encoder under the names of transformers' class of today."""
    bare = {k.removeprefix("text_model."): v for k, v in tensors.items()}
    if class_name == "CLIPTextModel":
        return bare
    return {k if k == "text_projection.weight" else f"text_model.{k}": v for k, v in bare.items()}


def _empty(part: str, family: Family) -> Any:
    if part in ("unet", "vae"):
        class_name = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}[part]
        return empty(class_name, getattr(family, part))
    return empty(family.text_encoders[part].class_name, family.text_encoders[part].config)


def _recognise(file: WeightFile, families: Sequence[Family]) -> Family:
    names = file.tensors
    if file.kind != "a Stable Diffusion checkpoint":
        raise ValueError(
            f"{file.path} is {file.kind}; expected a Stable Diffusion checkpoint in the original "
            "layout (SD 1, SD 2, SDXL), or a diffusers folder"
        )
    if "edm_mean" in names:
        raise ValueError(f"{file.path} is Playground v2.5, whose EDM scheduling is not exported")
    for family in families:
        prefixes = [layout.prefix for layout in family.text_encoders.values()]
        if all(any(name.startswith(prefix) for name in names) for prefix in prefixes):
            return family
    raise ValueError(
        f"{file.path} holds a UNet but no text encoder of SD 1, SD 2 or SDXL; "
        "export the whole checkpoint"
    )


def _with_channels(file: WeightFile, family: Family) -> Family:
    weight = file.tensors.get(f"{_UNET}input_blocks.0.0.weight")
    channels = weight.shape[1] if weight is not None and weight.ndim == 4 else 0
    if channels == family.unet["in_channels"]:
        return family
    if channels != 9 or family.inpaint_pipeline is None:
        purpose = _OTHER_CHANNELS.get(channels, "unknown")
        raise ValueError(
            f"{file.path}: {family.name} with {channels} input channels ({purpose}) is not "
            "exported; expected 4, or 9 for inpainting"
        )
    return replace(family, pipeline=family.inpaint_pipeline, unet={**family.unet, "in_channels": 9})


def _with_prediction(file: WeightFile, family: Family, chosen: str | None) -> Family:
    """Prediction type, noise schedule and size, as far as they are not the family's own."""
    if chosen not in (None, *PREDICTION_TYPES):
        raise ValueError(f"prediction type must be {' or '.join(PREDICTION_TYPES)}, got {chosen!r}")
    told = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}.get(
        file.metadata.get("modelspec.prediction_type", "")
    )
    if "v_pred" in file.tensors:
        told = "v_prediction"
    default = family.scheduler["prediction_type"]
    inpaints = family.unet["in_channels"] != 4
    if default == "v_prediction" and inpaints:
        default = "epsilon"  # the published SD 2 that paints in
    elif default == "v_prediction" and not (chosen or told):
        logger.warning(
            "%s: taken for the SD 2 of 768 pixels, which predicts v; "
            "for the one of 512 give --prediction-type epsilon",
            file.path,
        )
    prediction = chosen or told or default
    scheduler = {**family.scheduler, "prediction_type": prediction}
    if "ztsnr" in file.tensors:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    unet = dict(family.unet)
    if family.scheduler["prediction_type"] != "epsilon" and prediction == "epsilon":
        unet["sample_size"] = _BASE_SIZE
    return replace(family, scheduler=scheduler, unet=unet)


def _tokenizer_folder(path: Path, folder: Path | None, name: str) -> Path:
    if folder is None:
        raise FileNotFoundError(
            f"{path}: a single file holds no tokenizer; give --tokenizer FOLDER, "
            "with CLIP's vocab.json and merges.txt"
        )
    for candidate in (folder / name, folder / "tokenizer", folder):
        if (candidate / "tokenizer.json").is_file() or all(
            (candidate / file).is_file() for file in ("vocab.json", "merges.txt")
        ):
            return candidate
    raise FileNotFoundError(
        f"no tokenizer in {folder}: expected vocab.json and merges.txt, or tokenizer.json"
    )


def _copy_tokenizer(source: Path, target: Path, pad_token: str) -> None:
    """The vocabulary, and settings for the text encoder that it serves."""
    target.mkdir(parents=True)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad_token,
    }
    _write(target / "tokenizer_config.json", settings)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
