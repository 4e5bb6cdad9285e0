"""Reading a Stable Diffusion checkpoint: a diffusers folder, or its id on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.single_file import text_state, vae_state
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.files import sha256_of
from sdexport.engines.messages import one_line
from sdexport.runtime import schedulers
from sdexport.runtime.packages.manifest import family_name
from sdexport.runtime.pipeline import DEFAULT_SCHEDULER

PIPELINE_CLASSES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
_CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL", "AutoencoderTiny")),
}
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_WANTED = ["model_index.json", "tokenizer*/*", "scheduler/*"] + [
    f"{part}/{pattern}" for part in _CLASSES for pattern in ("*.json", "*.safetensors")
]
_UNWANTED = ["*.fp16.*", "*.fp16-*", "*.bf16.*", "*non_ema*"]
VARIANTS = (None, "fp16")


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers folder whose configurations were read and found to be ones we export.

    configs: for text_encoder, text_encoder_2, unet and vae, as far as they are there, the
      configuration with the class's defaults filled in.
    source: what the manifest says of the origin, never a path.
    loader: gives the modules where the folder holds no weights. label: what messages call it.
    """

    folder: Path
    source: Mapping[str, str]
    index: Mapping[str, Any]
    configs: Mapping[str, SimpleNamespace]
    scheduler_config: Mapping[str, Any]
    loader: Callable[[str], Any] | None = None
    label: str = ""

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        loader: Callable[[str], Any] | None = None,
        origin: Mapping[str, str] | None = None,
        label: str | None = None,
    ) -> Checkpoint:
        """Find and check a checkpoint.

        Args:
          source: a folder, or a hub id such as "name/model".
          revision: of the hub id.
          loader, origin, label: for a folder that holds configurations alone, see sources.py.
        Raises: FileNotFoundError: no such folder, or files are missing. ValueError: the folder is
          damaged or of a kind that is not exported. ConnectionError: the hub cannot be reached.
        """
        folder, found = _locate(source, revision)
        index = read_json(folder / "model_index.json")
        kind = index.get("_class_name")
        if kind not in PIPELINE_CLASSES:
            raise ValueError(
                f"{folder}: pipelines of class {kind!r} are not exported; "
                f"supported: {', '.join(PIPELINE_CLASSES)}"
            )
        present = [part for part in _CLASSES if index.get(part) not in (None, [None, None])]
        absent = [part for part in ("unet", "vae") if part not in present]
        if absent or not _encoders(present):
            raise ValueError(f"{folder}: model_index.json names no {(*absent, 'text_encoder')[0]}")
        configs = {part: _config(folder, index, part) for part in present}
        _check_supported(folder, configs)
        for part in present if loader is None else ():
            weight_files(folder, part)
        for part in _encoders(present):
            where = tokenizer_folder(part)
            if not any((folder / where / n).is_file() for n in ("vocab.json", "tokenizer.json")):
                raise FileNotFoundError(f"{folder}: the tokenizer is missing ({where}/vocab.json)")
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        _check_scheduler(folder, scheduler)
        if origin is None:
            is_local = found["type"] == "folder"
            origin = {**found, "sha256": _fingerprint(folder, present)} if is_local else found
        return cls(folder, origin, index, configs, scheduler, loader, label or str(folder))

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Those that there are, in their order."""
        return _encoders(self.configs)

    @property
    def downscale(self) -> int:
        """Pixels that a latent cell covers along a side."""
        vae = self.configs["vae"]
        levels = getattr(vae, "block_out_channels", None) or vae.decoder_block_out_channels
        return int(2 ** (len(levels) - 1))

    @property
    def sample_size(self) -> tuple[int, int]:
        """Cells (height, width) of the latents that the UNet was trained on."""
        side = self.configs["unet"].sample_size or 64
        height, width = (side, side) if isinstance(side, int) else side
        return int(height), int(width)

    @property
    def family(self) -> str:
        """What the runtime calls this kind of model."""
        unet, vae = self.configs["unet"], self.configs["vae"]
        return family_name(vars(unet), self.configs, vae.latent_channels)

    def load(self, part: str) -> Any:
        """The module of a part, for inference in float32; see modules.fill.

        Raises: ValueError: the weights are damaged, do not fit the configuration, or hold NaN.
        """
        module = self.loader(part) if self.loader else self._load_weights(part)
        for name, weight in module.named_parameters():
            if not all(map(torch.isfinite, torch.aminmax(weight.detach()))):
                raise ValueError(f"{self.label}: {part}: weight {name} holds NaN or infinity")
        return module.eval().requires_grad_(False)

    def _load_weights(self, part: str) -> Any:
        class_name = str(self.index[part][1])
        try:
            tensors: dict[str, torch.Tensor] = {}
            for file in weight_files(self.folder, part):
                tensors |= WeightFile.open(file).tensors
            if part in TEXT_ENCODERS:
                tensors = text_state(tensors, class_name)
            elif class_name == "AutoencoderKL":
                tensors = vae_state(tensors, vars(self.configs[part]))
            module = empty(class_name, read_json(self.folder / part / "config.json"))
            check_shapes(self.folder, part, module, tensors)
            return fill(module, tensors)
        except Exception as error:  # what a damaged configuration makes the libraries raise
            raise ValueError(
                f"{self.folder}: cannot load {part}: {one_line(error, 300)}"
            ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Raises: FileNotFoundError: missing. ValueError: damaged."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent}: no Stable Diffusion checkpoint: {path.name} is missing"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return value


def variant(folder: Path, part: str) -> str | None:
    """None, or "fp16" where a part has only weights of that name."""
    for name in VARIANTS:
        if any((folder / part / file).is_file() for file in _weight_names(part, name)):
            return name
    return None


def _weight_names(part: str, variant: str | None) -> tuple[str, str]:
    """The file of all weights, and the list of shards that may stand in its place."""
    stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
    dotted = f".{variant}" if variant else ""
    return f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"


def weight_files(folder: Path, part: str) -> list[Path]:
    """The safetensors files that `load` reads.

    Raises: FileNotFoundError: there are none.
    """
    whole, listed = _weight_names(part, variant(folder, part))
    files, shards = [folder / part / whole], folder / part / listed
    if not files[0].is_file() and shards.is_file():
        weight_map = read_json(shards).get("weight_map", {})
        names = set(weight_map.values()) if isinstance(weight_map, dict) else {None}
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError(f"{shards} is damaged: it names files outside of its folder")
        files = sorted(folder / part / str(name) for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(f"{folder}: {part}: missing {', '.join(missing) or 'weights'}")
    return files


def _locate(source: str | Path, revision: str | None) -> tuple[Path, dict[str, str]]:
    folder = Path(source)
    if folder.is_dir():
        return folder, {"type": "folder"}
    if folder.is_file():
        raise ValueError(f"{source} is a file; expected a diffusers folder or a hub id")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(f"no checkpoint at {source}: there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = Path(
            snapshot_download(
                str(source), revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
            )
        )
        parts = [p for p in _CLASSES if (found / p / "config.json").is_file()]
        bare = [p for p in parts if not _has_weights(found, p)]
        if bare:  # published in half precision alone
            snapshot_download(
                str(source), revision=found.name, allow_patterns=[f"{p}/*.fp16*" for p in bare]
            )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConnectionError(
            f"no folder {source}, and the hub cannot give it "
            f"({type(error).__name__}); check the name and the network, or give a local folder"
        ) from error
    return found, {"type": "hub", "id": str(source), "revision": found.name}


def tokenizer_folder(part: str) -> str:
    """The folder of a text encoder's tokenizer."""
    return part.replace("text_encoder", "tokenizer")


def _encoders(parts: Iterable[str]) -> tuple[str, ...]:
    there = set(parts)
    return tuple(part for part in TEXT_ENCODERS if part in there)


def _has_weights(folder: Path, part: str) -> bool:
    return any((folder / part / file).is_file() for file in _weight_names(part, None))


def _class(part: str, name: str) -> Any:
    return getattr(__import__(_CLASSES[part][0]), name)


def _config(folder: Path, index: Mapping[str, Any], part: str) -> SimpleNamespace:
    named, known = index.get(part), _CLASSES[part][1]
    if not isinstance(named, list) or len(named) != 2 or named[1] not in known:
        raise ValueError(
            f"{folder}: {part} is {named!r}; only {' and '.join(known)} is exported as {part}"
        )
    values = read_json(folder / part / "config.json")
    if part in TEXT_ENCODERS:
        from transformers import CLIPTextConfig

        return SimpleNamespace(**CLIPTextConfig.from_dict(values).to_dict())
    arguments = inspect.signature(_class(part, named[1]).__init__).parameters.values()
    defaults = {a.name: a.default for a in arguments if a.default is not a.empty}
    return SimpleNamespace(**{**defaults, **values})


def _check_supported(folder: Path, configs: Mapping[str, SimpleNamespace]) -> None:
    unet, vae = configs["unet"], configs["vae"]
    encoders = [configs[part] for part in _encoders(configs)]
    xl = "text_encoder_2" in configs
    width = sum(encoder.hidden_size for encoder in encoders)
    latent = vae.latent_channels
    fits = {
        "unet.in_channels equals vae.latent_channels, or twice that and one for inpainting": (
            unet.in_channels in (latent, 2 * latent + 1)
        ),
        "unet.cross_attention_dim equals text_encoder.hidden_size": (
            unet.cross_attention_dim == width
        ),
        "unet has no class conditions": not unet.class_embed_type and not unet.num_class_embeds,
        "unet has added conditions of text and time exactly with text_encoder_2": (
            unet.addition_embed_type == ("text_time" if xl else None)
        ),
        "vae has no mean, deviation or shift of its own": not any(
            getattr(vae, key, None) for key in ("latents_mean", "latents_std", "shift_factor")
        ),
    }
    broken = [name for name, holds in fits.items() if not holds]
    if broken:
        raise ValueError(f"{folder}: not a checkpoint that is exported; expected {broken[0]}")


def _check_scheduler(folder: Path, config: Mapping[str, Any]) -> None:
    """A configuration that the runtime would refuse is refused now."""
    name = schedulers.canonical_name(str(config.get("_class_name", ""))) or DEFAULT_SCHEDULER
    try:
        schedulers.create(name, config, 4)
    except ValueError as error:
        raise ValueError(f"{folder}: scheduler/scheduler_config.json: {error}") from error


def _fingerprint(folder: Path, parts: Iterable[str]) -> str:
    """SHA-256 over the weight files' own, in order of their names."""
    total = hashlib.sha256()
    for part in sorted(parts):
        for file in weight_files(folder, part):
            total.update(f"{part}/{file.name} {sha256_of(file)}\n".encode())
    return total.hexdigest()
