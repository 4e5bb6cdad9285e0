"""An IP-Adapter to export: a file of weights, and the folder of its image encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from torch import nn

from sdexport.checkpoints.image_encoder import ImageEncoder
from sdexport.checkpoints.image_projection import ImageProjection
from sdexport.checkpoints.unused_weights import listed
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.models.ip_adapter import IMAGE_ENCODER, IMAGE_PROJECTION, IP_FAMILY

_PROJECTION, _LAYERS = "image_proj.", "ip_adapter."
_NAME = re.compile(r"(\d+)\.to_([kv])_ip\.weight")
_TOKENS = 4
"""Of the basic kind."""
_FACE_ID = ("perceiver_resampler.proj_in.weight", "norm.weight")
"""Weights of kinds that take embeddings of a face, of a network for face recognition."""
_FOLDER = "image_encoder"


def ip_in_file(
    file: WeightFile, image_encoder: str | Path | None, *, allow_pickle: bool = False
) -> dict[str, Any] | None:
    """The fields of an AdapterCheckpoint of a file; None if it holds no IP-Adapter.

    Args:
      image_encoder: the folder of its encoder; default image_encoder/ in the file's folder or the
        one above.
    Raises: FileNotFoundError: no such folder. CheckpointError: see `open_adapter`.
    """
    weights = _weights(file)
    if not any(name.startswith((_PROJECTION, _LAYERS)) for name in weights):
        return None
    encoder = ImageEncoder.open(_encoder_folder(file, image_encoder), allow_pickle=allow_pickle)
    with parsing(f"{file.path}: not a usable IP-Adapter"):
        config = _config(file, weights)
    _check_width(file, config, encoder)
    sizes = sum(weight.numel() for weight in weights.values())
    return {
        "family": IP_FAMILY,
        "configs": {
            IMAGE_ENCODER.source: encoder.config,
            IMAGE_PROJECTION.source: SimpleNamespace(**config),
        },
        "written_configs": {
            IMAGE_ENCODER.source: encoder.written,
            IMAGE_PROJECTION.source: config,
        },
        "source": {
            "type": "file",
            "sha256": file.sha256(),
            "image_encoder": " ".join(encoder.sha256()),
        },
        "latent_channels": 4,
        "downscale": 8,
        "loader": partial(_load, encoder, file),
        "weights": max(sizes, encoder.count_weights()),
    }


def _weights(file: WeightFile) -> dict[str, torch.Tensor]:
    """By name; a pickle holds two groups of them."""
    if isinstance(file.content, dict):
        groups = {
            f"{key}.{name}": value
            for key in ("image_proj", "ip_adapter")
            if isinstance(file.content.get(key), dict)
            for name, value in file.content[key].items()
            if isinstance(value, torch.Tensor)
        }
        if groups:
            return groups
    return dict(file.weights)


def _encoder_folder(file: WeightFile, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    near = [folder / _FOLDER for folder in (file.path.parent, file.path.parent.parent)]
    found = next((folder for folder in near if folder.is_dir()), None)
    if found is None:
        raise CheckpointError(
            f"{file.path}: an IP-Adapter needs its image encoder, and there is no {near[0]}; "
            "give its folder with --image-encoder"
        )
    return found


def _load(encoder: ImageEncoder, file: WeightFile, part: str) -> Any:
    if part == IMAGE_ENCODER.source:
        return encoder.load()
    weights = _weights(file)
    tokens = _tokens_module(_below(weights, _PROJECTION))
    layers: dict[str, list[nn.Module]] = {"k": [], "v": []}
    for _, which, weight in _numbered(weights):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight.float(), requires_grad=False)
        layers[which].append(layer)
    return ImageProjection(tokens, layers["k"], layers["v"])


def _tokens_module(weights: Mapping[str, torch.Tensor]) -> Any:
    """The module of diffusers with these weights."""
    convert = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
    return convert(None, dict(weights), low_cpu_mem_usage=False)


def _config(file: WeightFile, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the graph of the projection depends on.

    Raises: CheckpointError: an IP-Adapter of an unknown or unsupported kind.
    """
    left = [name for name in weights if not name.startswith((_PROJECTION, _LAYERS))]
    unknown = [n for n in _below(weights, _LAYERS) if not _NAME.fullmatch(n)]
    if unknown and any("_lora." in name for name in unknown):
        raise CheckpointError(
            f"{file.path}: an IP-Adapter FaceID, which takes the embeddings of a network for face "
            "recognition, is not supported"
        )
    if left or unknown:
        raise CheckpointError(f"{file.path}: {listed(sorted([*left, *unknown]))} are not used")
    kind = _kind(file, _below(weights, _PROJECTION))
    layers = _layer_widths(file, weights, kind["width"])
    return {"_class_name": "IPAdapter", **kind, "layers": layers}


def _kind(file: WeightFile, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """tokens: of an image. hidden: whether it takes hidden states of the encoder, of `features`
    width, instead of the projected embedding. width: of a token."""
    if "proj.weight" in weights:
        rows, features = weights["proj.weight"].shape
        if rows % _TOKENS:
            raise CheckpointError(f"{file.path}: image_proj.proj.weight has {rows} rows")
        return _described("base", _TOKENS, False, features, rows // _TOKENS)
    if "proj.3.weight" in weights:
        features, width = weights["proj.0.weight"].shape[0], weights["proj.3.weight"].shape[0]
        return _described("full", 0, True, features, width)
    if any(name in weights for name in _FACE_ID):
        raise CheckpointError(
            f"{file.path}: an IP-Adapter FaceID, which takes the embeddings of a network for face "
            "recognition, is not supported"
        )
    if "latents" not in weights:
        raise CheckpointError(
            f"{file.path}: an IP-Adapter without an image projection that is known"
            if weights
            else f"{file.path}: an IP-Adapter without image_proj.*; it is incomplete"
        )
    tokens, features = weights["latents"].shape[1], weights["proj_in.weight"].shape[1]
    return _described("plus", tokens, True, features, weights["proj_out.weight"].shape[0])


def _described(kind: str, tokens: int, hidden: bool, features: int, width: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "tokens": int(tokens),
        "hidden": hidden,
        "features": int(features),
        "width": int(width),
    }


def _layer_widths(file: WeightFile, weights: Mapping[str, torch.Tensor], width: int) -> list[int]:
    """The width of the keys of each layer, in the order of their numbers: 1, 3, 5 and so on."""
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for number, which, weight in _numbered(weights):
        found.setdefault(number, {})[which] = tuple(weight.shape)
    expected = list(range(1, 2 * len(found), 2))
    for number, shapes in found.items():
        same = shapes.keys() == {"k", "v"} and len(set(shapes.values())) == 1
        if not same or len(shapes["k"]) != 2 or shapes["k"][1] != width:
            raise CheckpointError(
                f"{file.path}: ip_adapter.{number} has weights of shapes "
                f"{shown(sorted(shapes.values()))}; expected to_k_ip and to_v_ip of one shape, "
                f"with {width} columns"
            )
    if not found or list(found) != expected:
        raise CheckpointError(
            f"{file.path}: expected weights ip_adapter.1, ip_adapter.3 and so on, got "
            f"{shown(list(found))}"
        )
    return [shapes["k"][0] for shapes in found.values()]


def _numbered(weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Number, "k" or "v", and weight of each layer, by number."""
    matches = ((_NAME.fullmatch(n), w) for n, w in _below(weights, _LAYERS).items())
    found = [(int(match[1]), match[2], weight) for match, weight in matches if match]
    yield from sorted(found, key=lambda each: each[:2])


def _below(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _check_width(file: WeightFile, config: dict[str, Any], encoder: ImageEncoder) -> None:
    """Check that the encoder is the one of the file; its number of tokens decides that of "full".

    Raises: CheckpointError: it is another one.
    """
    own = encoder.config
    name, width = "projection_dim", own.projection_dim
    if config["hidden"]:
        name, width = "hidden_size", own.hidden_size
    if width != config["features"]:
        raise CheckpointError(
            f"{file.path} takes image features of width {config['features']}, and the image "
            f"encoder {encoder.folder} has {name} {width}; give its own with --image-encoder"
        )
    if config["kind"] == "full":
        config["tokens"] = (own.image_size // own.patch_size) ** 2 + 1
