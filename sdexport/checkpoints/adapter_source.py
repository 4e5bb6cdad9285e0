"""An adapter to export: a folder of diffusers, a repository of the hub, or a single file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sdexport.checkpoints.base_model import BaseModel, BaseOptions
from sdexport.checkpoints.config_files import read_config
from sdexport.checkpoints.controlnet_source import controlnet_in_file, controlnet_in_folder
from sdexport.checkpoints.controlnet_xs_source import check_base, controlnet_xs_in_folder
from sdexport.checkpoints.hub import locate_adapter
from sdexport.checkpoints.ip_source import ip_in_file
from sdexport.checkpoints.t2i_source import t2i_in_file, t2i_in_folder
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.models.controlnet import XS_CLASSES
from sdexport.runtime.models.family import ModelFamily


@dataclass(frozen=True)
class AdapterCheckpoint:
    """An adapter whose configurations are supported; made by `open_adapter`.

    family: of its package. label: the name that messages use.
    source: what the manifest says of the origin; never a path.
    configs: by component of the source, with the defaults of its class filled in.
    written_configs: the same as they are written to the package.
    latent_channels, downscale: of the models that it fits.
    loader: returns the module of a component of the source.
    """

    family: ModelFamily
    label: str
    source: Mapping[str, str]
    configs: Mapping[str, SimpleNamespace]
    written_configs: Mapping[str, Mapping[str, Any]]
    latent_channels: int
    downscale: int
    loader: Callable[[str], Any] = field(repr=False)
    weights: int = 0

    def load(self, part: str) -> Any:
        """The module of a component, for inference in float32.

        Raises: CheckpointError: the weights are damaged, do not fit the configuration, or hold NaN
          or infinity.
        """
        with parsing(f"{self.label}: cannot load {part}"):
            module = self.loader(part)
            for name, weight in module.named_parameters():
                if not all(map(torch.isfinite, torch.aminmax(weight.detach()))):
                    raise CheckpointError(
                        f"{self.label}: {part}: weight {name} holds NaN or infinity"
                    )
        return module.eval().requires_grad_(False)


_IN_FOLDERS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "ControlNetModel": controlnet_in_folder,
    "ControlNetUnionModel": controlnet_in_folder,
    "T2IAdapter": t2i_in_folder,
    **dict.fromkeys(XS_CLASSES, controlnet_xs_in_folder),
}
"""By class name in config.json, what opens the folder: (folder, config, variant=, allow_pickle=),
and base= of a ControlNet-XS. It returns fields of AdapterCheckpoint, as do those of _IN_FILES."""
_IN_FILES: tuple[Callable[[WeightFile], dict[str, Any] | None], ...] = (
    controlnet_in_file,
    t2i_in_file,
)
"""Each opens a file if it is of its kind, else it returns None."""
_NOT_SUPPORTED = {
    "MultiControlNetModel": "several ControlNets at once; export each of them",
    "SparseControlNetModel": "SparseCtrl, for video",
    "FluxControlNetModel": "a ControlNet for Flux",
    "SD3ControlNetModel": "a ControlNet for SD 3",
    "HunyuanDiT2DControlNetModel": "a ControlNet for Hunyuan-DiT",
}
"""Classes of adapters that are not exported, and what they are."""


def open_adapter(
    source: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    image_encoder: str | Path | None = None,
    base: str | Path | None = None,
    base_options: BaseOptions | None = None,
) -> AdapterCheckpoint:
    """Find and check an adapter, without reading its weights.

    Args:
      source: a folder with config.json, a hub id, or a single file.
      revision: of a hub id. variant: of a folder's weights, such as "fp16".
      allow_pickle: read .pth, .pt and .bin files too.
      image_encoder: folder of the image encoder of an IP-Adapter; see ip_in_file.
      base: of a ControlNet-XS, the checkpoint of the model: a folder, a hub id, or a single file.
      base_options: which weights of that are taken.
    Raises: FileNotFoundError: no such folder or file. CheckpointError: damaged, incomplete, or of a
      kind that is not supported. InvalidArgumentError: options that do not fit the source.
      ConnectionError: the hub cannot be reached.
    """
    path, base_options = Path(source), base_options or BaseOptions()
    if base is None:
        base_options.reject("no --base is given", "revision", "variant", "ema")
    if path.is_file():
        for name, value in (("revision", revision), ("variant", variant)):
            if value is not None:
                raise InvalidArgumentError(f"{source} is a file; omit --{name}")
        if base is not None:
            raise InvalidArgumentError(
                f"{source} is a file; omit --base, which the folder of a ControlNet-XS needs"
            )
        return _from_file(path, image_encoder, allow_pickle=allow_pickle)
    if image_encoder is not None:
        raise InvalidArgumentError(f"{source} is no file of an IP-Adapter; omit --image-encoder")

    def check(folder: Path) -> None:
        _, config = _opener(folder)
        check_base(source, config["_class_name"], base)

    folder, origin = locate_adapter(
        source, revision, variant=variant, allow_pickle=allow_pickle, check=check
    )
    check(folder)
    model = None if base is None else partial(BaseModel.open, base, base_options)
    opened = _from_folder(folder, model, variant=variant, allow_pickle=allow_pickle)
    if origin is None:
        return opened
    of_base = {key: value for key, value in opened.source.items() if key.startswith("base.")}
    return replace(opened, source={**origin, **of_base}, label=str(source))


def _from_file(
    path: Path, image_encoder: str | Path | None, *, allow_pickle: bool
) -> AdapterCheckpoint:
    file = WeightFile.open(path, allow_pickle=allow_pickle)
    found = ip_in_file(file, image_encoder, allow_pickle=allow_pickle)
    if found is None and image_encoder is not None:
        raise InvalidArgumentError(f"{path} is {file.kind}, no IP-Adapter; omit --image-encoder")
    for opens in _IN_FILES:
        found = found or opens(file)
    if found is None:
        raise CheckpointError(
            f"{path} is {file.kind}; expected an adapter: a ControlNet, T2I-Adapter or IP-Adapter"
        )
    return AdapterCheckpoint(
        label=str(path), **{"source": {"type": "file", "sha256": file.sha256()}, **found}
    )


def _from_folder(
    folder: Path, base: Callable[..., BaseModel] | None, *, variant: str | None, allow_pickle: bool
) -> AdapterCheckpoint:
    opens, config = _opener(folder)
    further = {} if base is None else {"base": partial(base, allow_pickle=allow_pickle)}
    found = opens(folder, config, variant=variant, allow_pickle=allow_pickle, **further)
    return AdapterCheckpoint(label=str(folder), **found)


def _opener(folder: Path) -> tuple[Callable[..., dict[str, Any]], dict[str, Any]]:
    """What opens a folder, and its configuration.

    Raises: CheckpointError: it holds no adapter of a kind that is supported.
    """
    if (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        inside = [p.parent.name for p in sorted(folder.glob("controlnet*/config.json"))]
        hint = f"give the folder of its {inside[0]}" if inside else "export it with sdexport export"
        raise CheckpointError(f"{folder} is a whole pipeline, not an adapter; {hint}")
    config = read_config(folder / "config.json")
    name = config.get("_class_name")
    opens = _IN_FOLDERS.get(name) if isinstance(name, str) else None
    if opens is None:
        what = _NOT_SUPPORTED.get(str(name), "no adapter that can be exported")
        raise CheckpointError(
            f"{folder}: {shown(name)} is not supported: {what}; expected one of "
            f"{', '.join(_IN_FOLDERS)}"
        )
    return opens, config
