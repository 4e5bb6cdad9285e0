"""A T2I-Adapter to export: a folder of diffusers, or a file in its or in the original layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from sdexport.checkpoints.adapter_folder import AdapterFolder
from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.unused_weights import check_all_used
from sdexport.checkpoints.weight_file import WeightFile, merged
from sdexport.checkpoints.weight_origins import origins
from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import shown
from sdexport.runtime.models.t2i_adapter import T2I_ADAPTER, T2I_FAMILY

CLASS_NAME = "T2IAdapter"
_PREFIX = "adapter."
_TYPES = ("full_adapter", "full_adapter_xl", "light_adapter")
_DOWNSCALES = (8, 16, 32)
_IMAGE_CHANNELS = (3, 1)
_RES_BLOCKS = 2
"""Of every level, in files in the original layout."""
_MARKS = (r"^(adapter\.)?conv_in\.weight$", r"^(adapter\.)?body\.\d+\.")
_LIGHT_MARK = r"^(adapter\.)?body\.0\.out_conv\.weight$"


def t2i_in_folder(
    folder: Path, config: Mapping[str, Any], *, variant: str | None, allow_pickle: bool
) -> dict[str, Any]:
    """The fields of an AdapterCheckpoint of a folder that diffusers wrote.

    Raises: CheckpointError: see `open_adapter`.
    """
    opened = AdapterFolder.open(
        folder,
        config,
        diffusers.T2IAdapter,
        T2I_ADAPTER.source,
        variant=variant,
        allow_pickle=allow_pickle,
    )
    fields = _fields(folder, opened.config, config, opened.files)
    return fields | {"source": opened.source}


def t2i_in_file(file: WeightFile) -> dict[str, Any] | None:
    """The fields of an AdapterCheckpoint of a single file; None if it holds no T2I-Adapter.

    Its configuration is taken from the shapes of its weights.

    Raises: CheckpointError: see `open_adapter`.
    """
    names = list(file.tensors)
    is_light = _any(_LIGHT_MARK, names)
    if not (is_light or all(_any(pattern, names) for pattern in _MARKS)):
        return None
    config = _config_of(file, _state(file.named_weights))
    return _fields(file.path, config, {"_class_name": CLASS_NAME, **config}, [file])


def _any(pattern: str, names: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def _fields(
    path: Path, config: Mapping[str, Any], written: Mapping[str, Any], files: Sequence[WeightFile]
) -> dict[str, Any]:
    _check_config(path, config)
    module = empty(CLASS_NAME, config)
    named = {name: weight for file in files for name, weight in file.named_weights.items()}
    state = _state(named)
    check_shapes(path, T2I_ADAPTER.source, module, state)
    left = set(named).union(*(file.others for file in files))
    check_all_used(
        path, f"a {CLASS_NAME} of this configuration", left - origins(state, module.state_dict())
    )
    return {
        "family": T2I_FAMILY,
        "configs": {T2I_ADAPTER.source: SimpleNamespace(**config)},
        "written_configs": {T2I_ADAPTER.source: written},
        "latent_channels": 4,
        "downscale": 8,
        "loader": partial(_load, config, files),
        "weights": sum(weight.numel() for weight in module.parameters()),
    }


def _load(config: Mapping[str, Any], files: Sequence[WeightFile], part: str) -> Any:
    return fill(empty(CLASS_NAME, config), _state(merged(files)))


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises: CheckpointError: names the first setting that is not supported."""
    channels, blocks = config["channels"], config["num_res_blocks"]
    are_channels = isinstance(channels, list | tuple) and all(map(_is_size, channels))
    expectations = {
        f"adapter_type of {', '.join(_TYPES)}": config["adapter_type"] in _TYPES,
        "1 or 3 channels of the image": config["in_channels"] in _IMAGE_CHANNELS,
        f"a downscale_factor of {', '.join(map(str, _DOWNSCALES))}": config["downscale_factor"]
        in _DOWNSCALES,
        "a list of channels": are_channels and 1 <= len(channels) <= 8,
        "1 to 8 num_res_blocks": _is_size(blocks) and blocks <= 8,
    }
    for name, holds in expectations.items():
        if not holds:
            raise CheckpointError(f"{path}: not a supported T2I-Adapter; expected {name}")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**14


def _state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the names of diffusers."""
    bare = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    if not any(".resnets." in name for name in bare):
        translated = _light_name if _any(_LIGHT_MARK, list(bare)) else _full_name
        bare = {translated(name): value for name, value in bare.items()}
    return {f"{_PREFIX}{name}": value for name, value in bare.items()}


def _full_name(name: str) -> str:
    """The original layout numbers the blocks of all levels through."""
    match = re.fullmatch(r"body\.(\d+)\.((in_conv|block[12])\..+)", name)
    if match is None:
        return name
    level, block = divmod(int(match[1]), _RES_BLOCKS)
    within = f"body.{level}" if match[3] == "in_conv" else f"body.{level}.resnets.{block}"
    return f"{within}.{match[2]}"


def _light_name(name: str) -> str:
    """The original layout calls the blocks of a level its body."""
    return re.sub(r"^(body\.\d+)\.body\.", r"\1.resnets.", name)


def _config_of(file: WeightFile, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The configuration that the weights have."""
    is_light = f"{_PREFIX}body.0.out_conv.weight" in state
    layer = "out_conv" if is_light else "resnets.0.block1"
    pattern = re.compile(rf"{re.escape(_PREFIX)}body\.(\d+)\.{re.escape(layer)}\.weight")
    matches = ((pattern.fullmatch(name), value) for name, value in state.items())
    widths = {int(match[1]): value.shape[0] for match, value in matches if match}
    first = state[f"{_PREFIX}{'body.0.in_conv' if is_light else 'conv_in'}.weight"].shape[1]
    sizes = [
        (channels, factor)
        for channels in _IMAGE_CHANNELS
        for factor in _DOWNSCALES[:2]
        if channels * factor**2 == first
    ]
    if not sizes or sorted(widths) != list(range(len(widths))):
        raise CheckpointError(
            f"{file.path}: a T2I-Adapter of unknown structure: its first layer has "
            f"{shown(first)} inputs; export its folder of diffusers"
        )
    ((channels, factor),) = sizes
    blocks = re.compile(rf"{re.escape(_PREFIX)}body\.0\.resnets\.(\d+)\.block1\.weight")
    kind = "light_adapter" if is_light else "full_adapter_xl" if factor > 8 else "full_adapter"
    return {
        "in_channels": channels,
        "channels": [widths[i] for i in sorted(widths)][: -1 if is_light else None],
        "num_res_blocks": sum(1 for name in state if blocks.fullmatch(name)),
        "downscale_factor": factor,
        "adapter_type": kind,
    }
