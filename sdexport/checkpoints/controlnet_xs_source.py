"""A ControlNet-XS to export: diffusers' folder of one, with a base model, or one of both fused.

The layers of a ControlNet-XS and those of a UNet exchange values, so what is exported is one module
of both: diffusers' UNetControlNetXSModel, made as UNetControlNetXSModel.from_unet makes it.

Source: diffusers, models/controlnets/controlnet_xs.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from sdexport.checkpoints.adapter_folder import AdapterFolder
from sdexport.checkpoints.base_model import BaseModel
from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.unused_weights import check_all_used
from sdexport.checkpoints.weight_file import WeightFile, merged
from sdexport.checkpoints.weight_origins import origins
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.models.controlnet import CONTROLNET_XS, CONTROLNET_XS_FAMILY, XS_CLASSES

_ADAPTER, _FUSED = XS_CLASSES
_Renames = tuple[tuple[str, str], ...]
_OF_UNET: _Renames = (
    (r"(time_embedding|add_embedding|conv_in|conv_norm_out|conv_out)\.", r"base_\1."),
    (r"(down_blocks\.\d+)\.(resnets|attentions)\.", r"\1.base_\2."),
    (r"(down_blocks\.\d+)\.downsamplers\.0\.", r"\1.base_downsamplers."),
    (r"mid_block\.", "mid_block.base_midblock."),
    (r"(up_blocks\.\d+\.upsamplers)\.0\.", r"\1."),
)
"""Names of a UNet's weights, and what stands in their place in the fused module."""
_OF_ADAPTER: _Renames = (
    (r"(time_embedding|conv_in)\.", r"ctrl_\1."),
    (r"(down_blocks\.\d+)\.(resnets|attentions|downsamplers)\.", r"\1.ctrl_\2."),
    (r"mid_block\.midblock\.", "mid_block.ctrl_midblock."),
    (r"up_connections\.", "up_blocks."),
)
_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "in_channels": (4,),
    "out_channels": (4,),
    "layers_per_block": (2,),
    "norm_eps": (1e-5,),
    "act_fn": ("silu", "swish"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "addition_embed_type": (None, "text_time"),
    "time_cond_proj_dim": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim_type": (None,),
    "encoder_hid_dim": (None,),
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "num_attention_heads": (None,),
    "reverse_transformer_layers_per_block": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
}
"""Settings of a UNet, each with the values that the fused module can have."""
_SAME = (
    ("base_block_out_channels", "block_out_channels"),
    ("cross_attention_dim", "cross_attention_dim"),
    ("down_block_types", "down_block_types"),
)
"""Settings of a ControlNet-XS, and those of its UNet that have the same value."""


def check_base(label: object, class_name: object, base: str | Path | None) -> None:
    """Check that a base model is given exactly if the source needs one.

    Args:
      label, class_name: of the source.
    Raises: InvalidArgumentError: it is missing, or not needed.
    """
    if base is None and class_name == _ADAPTER:
        raise InvalidArgumentError(
            f"{label} is a ControlNet-XS, whose layers and those of a model's UNet exchange "
            "values: give the checkpoint of that model, --base CHECKPOINT"
        )
    if base is not None and class_name == _FUSED:
        raise InvalidArgumentError(
            f"{label} is a ControlNet-XS that holds the UNet of its model; omit --base"
        )
    if base is not None and class_name not in XS_CLASSES:
        raise InvalidArgumentError(f"{label} is no ControlNet-XS; omit --base")


def controlnet_xs_in_folder(
    folder: Path,
    config: Mapping[str, Any],
    *,
    variant: str | None,
    allow_pickle: bool,
    base: Callable[[], BaseModel] | None = None,
) -> dict[str, Any]:
    """The fields of an AdapterCheckpoint of a folder that diffusers wrote.

    Args:
      base: opens the model, exactly if the folder holds a ControlNet-XS alone.
    Raises: CheckpointError: see `open_adapter`; the base model does not fit, or is not supported.
    """
    class_name = str(config["_class_name"])
    opened = AdapterFolder.open(
        folder,
        config,
        getattr(diffusers, class_name),
        CONTROLNET_XS.source,
        variant=variant,
        allow_pickle=allow_pickle,
    )
    with parsing(f"{folder}: config.json"):
        module = empty(class_name, config)
        state = {k: v for file in opened.files for k, v in file.named_weights.items()}
        left = {name for file in opened.files for name in (*file.named_weights, *file.others)}
        left -= origins(state, module.state_dict())
    check_shapes(folder, CONTROLNET_XS.source, module, state)
    check_all_used(folder, f"a {class_name} of this configuration", left)
    source = dict(opened.source)
    if base is None:
        load = partial(_load_fused, config, opened.files)
    else:
        model = base()
        _check_unet(folder, opened.config, model)
        with parsing(f"{folder} does not fit {model.label}"):
            module = _fused(model.config, config)
        load = partial(_load_both, config, opened.files, model)
        source |= {f"base.{key}": value for key, value in model.source.items()}
    return _fields(folder, module) | {"source": source, "loader": load}


def _fields(folder: Path, module: Any) -> dict[str, Any]:
    config = {key: value for key, value in module.config.items() if not key.startswith("_")}
    expectations = {
        "3 conditioning_channels, control images in RGB": config["ctrl_conditioning_channels"] == 3,
        "a conditioning_channel_order of rgb or bgr": config["ctrl_conditioning_channel_order"]
        in ("rgb", "bgr"),
        "a cross_attention_dim that all blocks have": isinstance(
            config["cross_attention_dim"], int
        ),
        "addition_embed_type of text_time or none": config["addition_embed_type"]
        in (None, "text_time"),
        "no time_cond_proj_dim": not config["time_cond_proj_dim"],
    }
    for name, holds in expectations.items():
        if not holds:
            raise CheckpointError(f"{folder}: not a supported ControlNet-XS; expected {name}")
    levels = len(config["ctrl_conditioning_embedding_out_channels"])
    return {
        "family": CONTROLNET_XS_FAMILY,
        "configs": {CONTROLNET_XS.source: SimpleNamespace(**config)},
        "written_configs": {CONTROLNET_XS.source: {"_class_name": _FUSED, **config}},
        "latent_channels": module.in_channels,
        "downscale": 2 ** (levels - 1),
        "weights": sum(weight.numel() for weight in module.parameters()),
    }


def _check_unet(folder: Path, config: Mapping[str, Any], model: BaseModel) -> None:
    """Check the UNet with which a ControlNet-XS is fused.

    Raises: CheckpointError: diffusers fuses no such UNet, or it has another size.
    """
    unet = model.settings
    what = f"{folder} cannot be fused with {model.label}"
    if model.is_refiner:
        raise CheckpointError(f"{what}: a refiner has no ControlNet-XS")
    for key, values in _FIXED.items():
        value = _plain(unet.get(key, values[0]))
        if value not in values:
            raise CheckpointError(
                f"{what}: its unet has {key} {shown(value)}, and the UNet of a ControlNet-XS has "
                f"{' or '.join(map(shown, values))}"
            )
    blocks = [*unet["down_block_types"], *unet["up_block_types"]]
    if unknown := [each for each in blocks if each not in _BLOCKS]:
        raise CheckpointError(f"{what}: its unet has blocks of the kind {shown(unknown[0])}")
    for key, of_unet in _SAME:
        expected, got = (_listed(each) for each in (config[key], unet[of_unet]))
        if expected != got:
            raise CheckpointError(
                f"{folder} is for another model than {model.label}: it has {key} "
                f"{shown(expected)}, and the unet {of_unet} {shown(got)}"
            )


def _plain(value: Any) -> Any:
    """The value that all entries of a list have."""
    same = isinstance(value, list | tuple) and value and all(each == value[0] for each in value)
    return value[0] if same else value


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _fused(unet: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """The fused module without weights."""
    parts = empty("UNet2DConditionModel", unet), empty(_ADAPTER, config)
    logger = logging.getLogger("diffusers.models.modeling_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it warns of a conversion that changes nothing
    try:
        with torch.device("meta"):
            return diffusers.UNetControlNetXSModel.from_unet(*parts)
    finally:
        logger.setLevel(before)


def _load_fused(config: Mapping[str, Any], files: Sequence[WeightFile], part: str) -> Any:
    return fill(empty(_FUSED, config), merged(files))


def _load_both(
    config: Mapping[str, Any],
    files: Sequence[WeightFile],
    model: BaseModel,
    part: str,
) -> Any:
    base, own = model.load().state_dict(), merged(files)
    weights = {_renamed(name, _OF_UNET): value for name, value in base.items()}
    weights |= {_renamed(name, _OF_ADAPTER): value for name, value in own.items()}
    return fill(_fused(model.config, config), weights)


def _renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in renames:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return name
