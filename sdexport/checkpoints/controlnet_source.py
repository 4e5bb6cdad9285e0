"""A ControlNet to export: a folder of diffusers, or a file in diffusers' or the original layout."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from sdexport.checkpoints.adapter_folder import AdapterFolder
from sdexport.checkpoints.controlnet_union_source import (
    IN_UNION,
    UNION_CLASS,
    union_config,
    union_expectations,
)
from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.published_configs import UNET_SD1, UNET_SD2, UNET_SDXL
from sdexport.checkpoints.unused_weights import check_all_used
from sdexport.checkpoints.weight_file import WeightFile, merged
from sdexport.checkpoints.weight_origins import origins
from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.models.controlnet import CONTROLNET, CONTROLNET_FAMILY

_log = logging.getLogger(__name__)
CLASS_NAME = "ControlNetModel"
UNETS = (UNET_SD1, UNET_SD2, UNET_SDXL)
"""Configurations of the models for which there are ControlNets in single files."""
_ORIGINAL = "control_model."
_OF_MODEL = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
"""Weights of the model, which some files in the original layout hold as well."""
_MARKS = ("controlnet_down_blocks.", "zero_convs.", f"{_ORIGINAL}zero_convs.")
_XS = "a file of a ControlNet-XS, which says too little of it: give diffusers' folder of it"
_OTHERS = (
    (r"^lora_controlnet$|\.(up|down)\.weight$", "a Control-LoRA, which changes a model's own UNet"),
    (r"lllite", "a ControlNet-LLLite"),
    (r"^difference$", "a difference of weights, which needs the model that it is added to"),
    (rf"^{re.escape(_ORIGINAL)}{IN_UNION}", "a ControlNet-Union in another layout than diffusers'"),
    (r"(^|\.)(base_to_ctrl|ctrl_to_base|(enc|mid|dec|middle)_zero_convs_)", _XS),
    (r"^(double_blocks|joint_blocks|transformer_blocks)\.", "a ControlNet for Flux or SD 3"),
    (r"^(instance|sparse)_|motion_modules\.", "a ControlNet for video"),
)
"""Names of weights of other kinds of ControlNets."""
_LAYERS_PER_BLOCK = 2
"""In the original layout, which has names for no other number."""


def controlnet_in_folder(
    folder: Path, config: Mapping[str, Any], *, variant: str | None, allow_pickle: bool
) -> dict[str, Any]:
    """The fields of an AdapterCheckpoint of a folder that diffusers wrote.

    Raises: CheckpointError: see `open_adapter`.
    """
    opened = AdapterFolder.open(
        folder,
        config,
        getattr(diffusers, _class_name(config)),
        CONTROLNET.source,
        variant=variant,
        allow_pickle=allow_pickle,
    )
    fields = _fields(folder, opened.config, config, opened.files)
    return fields | {"source": opened.source}


def controlnet_in_file(
    file: WeightFile, unets: Sequence[Mapping[str, Any]] = UNETS
) -> dict[str, Any] | None:
    """The fields of an AdapterCheckpoint of a single file; None if it holds no ControlNet.

    Its configuration is that of the model that it was made for, as far as the weights do not say.

    Args:
      unets: configurations of models, to choose from.
    Raises: CheckpointError: another kind of ControlNet, or one for none of these models.
    """
    names = [str(name) for name in file.tensors]
    for pattern, what in _OTHERS:
        if any(re.search(pattern, name) for name in names) and _is_any_control(names):
            raise CheckpointError(f"{file.path} is {what}; that is not supported")
    if not any(name.startswith(_MARKS) for name in names):
        return None
    with parsing(file.path):
        config = _config_of(file, _state(file.named_weights), unets)
    class_ = getattr(diffusers, _class_name(config))
    arguments = inspect.signature(class_.__init__).parameters.values()
    defaults = {a.name: a.default for a in arguments if a.default is not a.empty}
    return _fields(file.path, {**defaults, **config}, config, [file])


def _class_name(config: Mapping[str, Any]) -> str:
    return UNION_CLASS if config.get("_class_name") == UNION_CLASS else CLASS_NAME


def _is_any_control(names: Sequence[str]) -> bool:
    """Whether names are those of some kind of ControlNet, and not of a LoRA or a model."""
    words = ("control", "zero_convs", "lllite", "input_hint_block", "base_to_ctrl")
    return any(word in name for name in names for word in words)


def _fields(
    path: Path,
    complete: Mapping[str, Any],
    config: Mapping[str, Any],
    files: Sequence[WeightFile],
) -> dict[str, Any]:
    class_name = _class_name(config)
    _check_config(path, complete)
    written = {"_class_name": class_name, **{k: v for k, v in config.items() if k[0] != "_"}}
    with parsing(f"{path}: config.json"):
        module = empty(class_name, written)
        state = _state({k: v for file in files for k, v in file.named_weights.items()})
        left = {name for file in files for name in (*file.named_weights, *file.others)}
        left = {
            n for n in left - origins(state, module.state_dict()) if not n.startswith(_OF_MODEL)
        }
    check_shapes(path, CONTROLNET.source, module, state)
    check_all_used(path, f"a {class_name} of this configuration", left)
    return {
        "family": CONTROLNET_FAMILY,
        "configs": {CONTROLNET.source: SimpleNamespace(**complete)},
        "written_configs": {CONTROLNET.source: written},
        "latent_channels": int(complete["in_channels"]),
        "downscale": 2 ** (len(complete["conditioning_embedding_out_channels"]) - 1),
        "loader": partial(_load, written, files),
        "weights": sum(weight.numel() for weight in module.parameters()),
    }


def _load(config: Mapping[str, Any], files: Sequence[WeightFile], part: str) -> Any:
    return fill(empty(_class_name(config), config), _state(merged(files)))


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises: CheckpointError: names the first setting that is not supported."""
    added = config["addition_embed_type"]
    sizes = (config["block_out_channels"], config["conditioning_embedding_out_channels"])
    expectations = {
        "no class conditioning": not config["class_embed_type"] and not config["num_class_embeds"],
        "no projection of encoder_hidden_states": not config["encoder_hid_dim_type"]
        and not config["encoder_hid_dim"],
        "addition_embed_type of text_time or none": added in (None, "text_time"),
        "controlnet_conditioning_channel_order of rgb or bgr": config[
            "controlnet_conditioning_channel_order"
        ]
        in ("rgb", "bgr"),
        "lists of channels": all(isinstance(each, list | tuple) and each for each in sizes),
        "1 to 64 input channels, those of latents": isinstance(config["in_channels"], int)
        and 1 <= config["in_channels"] <= 64,
        "3 conditioning_channels, control images in RGB": config["conditioning_channels"] == 3,
    }
    if _class_name(config) == UNION_CLASS:
        expectations |= union_expectations(config)
    for name, holds in expectations.items():
        if not holds:
            raise CheckpointError(f"{path}: not a supported ControlNet; expected {name}")


def _state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the names of diffusers."""
    tensors = {name: value for name, value in tensors.items() if not name.startswith(_OF_MODEL)}
    if any(name.startswith(_MARKS[0]) for name in tensors):
        return dict(tensors)
    found = convert_controlnet_checkpoint(dict(tensors), {"layers_per_block": _LAYERS_PER_BLOCK})
    bare = {name.removeprefix(_ORIGINAL): value for name, value in tensors.items()}
    for place, end in ((1, 0), (2, 2)):  # of SDXL; diffusers leaves them out
        for kind in ("weight", "bias"):
            value = bare.get(f"label_emb.0.{end}.{kind}")
            if value is not None:
                found.setdefault(f"add_embedding.linear_{place}.{kind}", value)
    return {name: value for name, value in found.items() if value is not None}


def _config_of(
    file: WeightFile, state: Mapping[str, torch.Tensor], unets: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The configuration that the weights of a file have."""
    channels = _numbered(state, r"down_blocks\.(\d+)\.resnets\.0\.conv1\.weight")
    attends = [any(n.startswith(f"down_blocks.{i}.attentions.") for n in state) for i in channels]
    keys = [v for n, v in state.items() if n.endswith("attn2.to_k.weight")]
    width = keys[0].shape[1] if keys else None
    unet = _unet_of(file, width, list(channels.values()), unets)
    hint = _numbered(state, r"controlnet_cond_embedding\.blocks\.(\d+)\.weight", axis=0)
    first = state["controlnet_cond_embedding.conv_in.weight"]
    outs = [first.shape[0], *(hint[i] for i in sorted(hint) if i % 2 == 1)]
    same = (
        *("attention_head_dim", "use_linear_projection", "upcast_attention"),
        *("cross_attention_dim", "addition_embed_type", "addition_time_embed_dim"),
        *("projection_class_embeddings_input_dim", "norm_num_groups"),
    )
    config = {key: unet[key] for key in same if key in unet}
    config |= {
        "in_channels": state["conv_in.weight"].shape[1],
        "conditioning_channels": first.shape[1],
        "block_out_channels": list(channels.values()),
        "layers_per_block": len(_numbered(state, r"down_blocks\.0\.resnets\.(\d+)\.conv1\.weight")),
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "conditioning_embedding_out_channels": outs,
        "transformer_layers_per_block": [
            _depth(state, f"down_blocks.{i}.attentions.0.") or 1 for i in channels
        ],
    }
    if not _depth(state, "mid_block.attentions.0."):
        config["mid_block_type"] = "UNetMidBlock2D"
    elif attends[-1] is False:  # the middle block is as deep as the last level
        config["transformer_layers_per_block"][-1] = _depth(state, "mid_block.attentions.0.")
    config |= union_config(state)
    if "shuffle" in file.path.name.lower():
        _log.warning(
            "%s: global_pool_conditions is taken to be true, as in the configuration of the "
            "ControlNet for shuffled images",
            file.path,
        )
        config["global_pool_conditions"] = True
    return config


def _unet_of(
    file: WeightFile,
    width: int | None,
    channels: list[int],
    unets: Sequence[Mapping[str, Any]],
) -> Mapping[str, Any]:
    for unet in unets:
        fits = width in (None, unet["cross_attention_dim"])
        if fits and list(unet["block_out_channels"]) == channels:
            return unet
    raise CheckpointError(
        f"{file.path}: a ControlNet for an unknown model: its cross-attention has width "
        f"{shown(width)} and its levels {shown(channels)} channels; export its folder of diffusers"
    )


def _numbered(state: Mapping[str, torch.Tensor], pattern: str, axis: int = 0) -> dict[int, int]:
    """A size of the weights of a pattern, by the number in their names, in its order."""
    matches = ((re.fullmatch(pattern, name), value) for name, value in state.items())
    found = {int(match[1]): value.shape[axis] for match, value in matches if match}
    return dict(sorted(found.items()))


def _depth(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """The number of transformer blocks of an attention layer."""
    pattern = re.compile(rf"{re.escape(prefix)}transformer_blocks\.(\d+)\.")
    return len({match[1] for name in state if (match := pattern.match(name))})
