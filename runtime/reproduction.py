"""Generating an image again from the settings that it carries."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from sdexport.engines.errors import InvalidArgumentError, SDExportError
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.controlnet_argument import ControlNet
from sdexport.runtime.adapters.image_adapter_arguments import IPAdapter, T2IAdapter
from sdexport.runtime.images.infotext import HASH_DIGITS
from sdexport.runtime.images.input_digest import identify
from sdexport.runtime.images.parameters import INPUT_IMAGES, Parameters
from sdexport.runtime.images.read_parameters import read_parameters
from sdexport.runtime.images.recorded_values import (
    InputImage,
    RecordedControlNet,
    RecordedIPAdapter,
    RecordedLora,
    RecordedT2IAdapter,
    identity,
)
from sdexport.runtime.version import __version__

_log = logging.getLogger(__name__)

REPLACES = {
    "prompt": ("prompt_embeds", "pooled_prompt_embeds"),
    "negative_prompt": ("negative_prompt_embeds", "negative_pooled_prompt_embeds"),
    "num_inference_steps": ("timesteps", "sigmas"),
    "timesteps": ("sigmas",),
    "sigmas": ("timesteps",),
    "scheduler": ("eta", "schedule", "scheduler_options"),
    "seed": ("latents", "generator"),
    "prompt_style": ("prompt_weights",),
    "prompt_weights": ("prompt_style",),
    "prompt_embeds": ("prompt",),
    "negative_prompt_embeds": ("negative_prompt",),
}
"""Recorded settings that a changed one makes meaningless."""


def parameters_of(source: Any) -> Parameters:
    """The settings of an image; settings themselves are returned as they are.

    Raises: InvalidArgumentError, FileNotFoundError: as `read_parameters`.
    """
    return source if isinstance(source, Parameters) else read_parameters(source)


def arguments_like(
    parameters: Parameters,
    changes: Mapping[str, Any],
    folder: Path | None = None,
    lora_dir: Path | None = None,
) -> dict[str, Any]:
    """The arguments of a pipeline call that generates an image again.

    Args:
      changes: arguments that replace recorded ones; prompt, negative_prompt and seed are those of
        this image and not of its batch.
      folder: where input images are looked for under their recorded names.
      lora_dir: where LoRAs are looked for as well, subfolders included.
    Raises: InvalidArgumentError: the image depends on an input that its settings do not hold, and
      that is not among the changes.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    replaced = {name for change in changes for name in REPLACES.get(change, ())}
    found = {k: v for k, v in parameters.arguments().items() if k not in replaced}
    for name, value in changes.items():
        single = name in ("prompt", "negative_prompt", "seed") and not isinstance(value, list)
        found[name] = parameters.of_batch(name, value) if single else value
    for name, what in parameters.external.items():
        if name not in (*changes, *replaced):
            raise InvalidArgumentError(
                f"the image cannot be reproduced from its settings alone: it depends on {name}, "
                f"{what[:60]}; give it again"
            )
    for name in INPUT_IMAGES:
        recorded = getattr(parameters, name)
        if recorded is not None and name not in changes:
            found[name] = _find(name, recorded, folder)
    if parameters.loras and "loras" not in changes:
        found["loras"] = [
            (_find_lora(each, folder, lora_dir), each.scale) for each in parameters.loras
        ]
    if parameters.controlnets and "controlnets" not in changes:
        found["controlnets"] = [_find_controlnet(each, folder) for each in parameters.controlnets]
    if parameters.t2i_adapters and "t2i_adapters" not in changes:
        found["t2i_adapters"] = [_find_t2i_adapter(e, folder) for e in parameters.t2i_adapters]
    if parameters.ip_adapters and "ip_adapters" not in changes:
        found["ip_adapters"] = [_find_ip_adapter(each, folder) for each in parameters.ip_adapters]
    if found.get("strength") is not None and "image" not in found:
        raise InvalidArgumentError(
            "the image was made from an input image, which its settings do not name; give image"
        )
    return found


def _find(name: str, recorded: tuple[InputImage, ...], folder: Path | None) -> Any:
    """The files of input images, recognised by their pixels.

    Raises: InvalidArgumentError: one of them is not there.
    """
    paths = []
    for each in recorded:
        # a recorded name is untrusted: only its last part counts
        path = Path(Path(each.name).name) if each.name else None
        places = [place / path for place in (folder, Path()) if place is not None and path]
        matching = [place for place in places if place.is_file() and _is(place, each)]
        if not matching:
            named = f"{path}, which is not there" if path else "one that has no file name"
            raise InvalidArgumentError(
                f"the image was made with an input image as {name}: {named}; give it again"
            )
        paths.append(matching[0])
    if not paths:
        raise InvalidArgumentError(f"the image was made with an input image; give {name}")
    return paths[0] if len(paths) == 1 else paths


def _find_lora(
    recorded: RecordedLora, folder: Path | None, lora_dir: Path | None
) -> Path | RecordedLora:
    """The file or folder of a LoRA, recognised by its hash; else what a pipeline may know it by."""
    from sdexport.runtime.adapters.lora_file import lora_digest
    from sdexport.runtime.adapters.lora_folder import sources_at
    from sdexport.runtime.adapters.lora_tags import LoraFolder

    name = Path(recorded.name).name  # a recorded name is untrusted: only its last part counts
    places = [place for place in (folder, Path(), lora_dir) if place is not None and name]
    paths = [place / file for place in places for file in (f"{name}.safetensors", name)]
    with suppress(OSError, SDExportError):
        paths += LoraFolder(lora_dir).files(name) if lora_dir is not None else []
    for path in paths:
        with suppress(OSError, SDExportError):  # no LoRA
            if path.exists() and lora_digest(sources_at(path)) == recorded.sha256:
                return path
    return recorded


def _find_controlnet(recorded: RecordedControlNet, folder: Path | None) -> ControlNet:
    """A ControlNet whose package and control images are in a folder or in the current one.

    Raises: InvalidArgumentError: one of them is not there.
    """
    path = _find_package(recorded, folder, "ControlNet", "controlnets (--controlnet)")
    images = _find("controlnets", recorded.images, folder)
    return ControlNet(
        path,
        images,
        recorded.scale,
        recorded.start,
        recorded.end,
        recorded.guess_mode,
        recorded.mode,
    )


def _find_t2i_adapter(recorded: RecordedT2IAdapter, folder: Path | None) -> T2IAdapter:
    """As _find_controlnet."""
    path = _find_package(recorded, folder, "T2I-Adapter", "t2i_adapters (--t2i-adapter)")
    images = _find("t2i_adapters", recorded.images, folder)
    return T2IAdapter(path, images, recorded.scale, recorded.factor)


def _find_ip_adapter(recorded: RecordedIPAdapter, folder: Path | None) -> IPAdapter:
    """As _find_controlnet."""
    path = _find_package(recorded, folder, "IP-Adapter", "ip_adapters (--ip-adapter)")
    images = _find("ip_adapters", recorded.images, folder)
    masks = None if recorded.masks is None else _find("ip_adapters", recorded.masks, folder)
    return IPAdapter(path, images, recorded.scale, masks)


def _find_package(
    recorded: RecordedControlNet | RecordedT2IAdapter | RecordedIPAdapter,
    folder: Path | None,
    kind: str,
    argument: str,
) -> Path:
    """The package of an adapter, in a folder or in the current one.

    Raises: InvalidArgumentError: it is not there.
    """
    from sdexport.runtime.packages.manifest import read_manifest

    name = Path(recorded.name).name  # a recorded name is untrusted: only its last part counts
    for place in (folder, Path()):
        path = place / name if place is not None and name else None
        try:
            if path is not None and read_manifest(path).digest == recorded.sha256:
                return path
        except (OSError, SDExportError):  # no package
            continue
    raise InvalidArgumentError(
        f"the image was made with the {kind} {shown(name)} ({recorded.sha256[:HASH_DIGITS]}), "
        f"which is not there; give {argument} again"
    )


def _is(path: Path, recorded: InputImage) -> bool:
    try:
        (found,) = identify(path) or ()
    except (OSError, SDExportError):  # no image
        return False
    return _same_hash(found.sha256, recorded.sha256)


def _same_hash(one: str, other: str) -> bool:
    """Whether two digests agree, of which one may be cut."""
    length = min(len(one), len(other))
    return length >= HASH_DIGITS and one[:length] == other[:length]


def differences(
    parameters: Parameters, settings: Mapping[str, Any], arguments: Mapping[str, Any]
) -> list[str]:
    """What is not as it was when an image was generated, each as a phrase; see also other_engines.

    Args:
      settings: of the pipeline that generates it again.
      arguments: of the call.
    """
    found = [*_other_settings(parameters, settings), *_other_inputs(parameters, arguments)]
    if parameters.not_understood:
        names = ", ".join(shown(name)[1:-1] for name in list(parameters.not_understood)[:10])
        found.append(f"not used: {names}")
    return found


def _other_settings(parameters: Parameters, settings: Mapping[str, Any]) -> list[str]:
    found = []
    now_of = {**settings, "version": __version__}
    then, now = parameters.model_hash, settings["model_hash"]
    if then is None or now is None:
        if parameters.model != settings["model"]:
            found.append(f"model {parameters.model or 'unknown'} then, {settings['model']} now")
        else:
            found.append("the model's hash is not known")
    elif not _same_hash(then, now):
        names = f"{parameters.model} ({then[:HASH_DIGITS]}) then, {settings['model']}"
        found.append(f"model {names} ({now[:HASH_DIGITS]}) now")
    for name in ("backend", "precision", "options", "vae_tile", "max_batch", "version"):
        before, after = getattr(parameters, name), now_of[name]
        if before != after:
            title = name.replace("_", " ")
            found.append(f"{title} {_shown(before)} then, {_shown(after)} now")
    return found


def other_engines(parameters: Parameters, engines: Sequence[str]) -> list[str]:
    """Whether other components ran built engines than when an image was generated, as a phrase.

    Args:
      engines: of the image that was generated again, after which they are known.
    """
    then, now = parameters.engines, tuple(engines)
    if set(then) == set(now):
        return []
    return [f"built engines of {_shown(then)} ran then, of {_shown(now)} now"]


def _other_inputs(parameters: Parameters, arguments: Mapping[str, Any]) -> list[str]:
    found = []
    for name, what in parameters.external.items():
        if name in arguments and identity(arguments[name]) != what:
            found.append(f"another {name}")
    for name in INPUT_IMAGES:
        recorded, given = getattr(parameters, name), arguments.get(name)
        if recorded and given is not None:
            images = identify(given) or ()
            pairs = zip(images, recorded, strict=False)
            same = len(images) == len(recorded)
            if not same or not all(_same_hash(a.sha256, b.sha256) for a, b in pairs):
                found.append(f"another {name}")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={entry}" for key, entry in value.items()) or "none"
    if isinstance(value, tuple):
        return " ".join(value) or "none"
    return "unknown" if value is None else str(value)


def warn_of_differences(name: str, found: list[str]) -> None:
    """Say in one line what is not as it was, if anything."""
    if found:
        _log.warning("%s: the image may differ: %s", name, "; ".join(found))


def folder_of(source: Any) -> Path | None:
    """The folder of a file, in which its input images are looked for."""
    return Path(source).parent if isinstance(source, (str, PathLike)) else None
