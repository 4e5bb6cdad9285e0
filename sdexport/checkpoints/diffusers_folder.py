"""A Stable Diffusion checkpoint in diffusers' layout, read and checked."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sdexport.checkpoints.config_files import read_config
from sdexport.checkpoints.diffusers_layout import (
    CLASSES,
    TEXT_ENCODERS,
    component_class,
    present_components,
    text_encoders_of,
    tokenizer_folder,
)
from sdexport.checkpoints.hub import locate
from sdexport.checkpoints.modules import check_shapes, empty, fill
from sdexport.checkpoints.safety_checker_source import checker_left_out, safety_checker_config
from sdexport.checkpoints.source_index import check_index, warn_of_unknown_keys
from sdexport.checkpoints.state_dicts import (
    Tensors,
    safety_checker_state,
    text_state,
    vae_state,
)
from sdexport.checkpoints.supported_configs import check_components
from sdexport.checkpoints.supported_schedulers import supported_scheduler
from sdexport.checkpoints.unused_weights import check_all_used, check_supported_parts
from sdexport.checkpoints.weight_file import WeightFile, merged
from sdexport.checkpoints.weight_origins import origins
from sdexport.checkpoints.weight_sets import every_file
from sdexport.engines.errors import CheckpointError
from sdexport.engines.files import sha256_of
from sdexport.engines.messages import one_line, shown
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.models import families
from sdexport.runtime.models.components import SAFETY_CHECKER, UNET, VAE_DECODER
from sdexport.runtime.models.family import ModelFamily
from sdexport.runtime.models.latent_space import LatentSpace, latent_space_of

_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers folder whose configurations are supported; use `Checkpoint.open`.

    folder: where the configurations are.
    source: what the manifest says of the origin; never a path.
    index: the content of model_index.json.
    configs: by component ("unet", "vae" and each text encoder), the configuration with
      the defaults of its class filled in.
    loader: returns the module of a component, if the folder holds no weights.
    files: by component, its files of weights, if the folder holds them.
    label: the name that messages use.
    """

    folder: Path
    source: Mapping[str, str]
    index: Mapping[str, Any]
    configs: Mapping[str, SimpleNamespace]
    scheduler_config: Mapping[str, Any]
    loader: Callable[[str], Any] | None = None
    label: str = ""
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    allow_pickle: bool = False

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
        no_safety_checker: bool = False,
        loader: Callable[[str], Any] | None = None,
        origin: Mapping[str, str] | None = None,
        label: str | None = None,
    ) -> Checkpoint:
        """Find and check a checkpoint, without reading its weights.

        Args:
          source: a folder, or a hub id such as "name/model".
          revision: of the hub id.
          variant: of the weights, such as "fp16"; see weight_sets.files_in.
          allow_pickle: read .bin files too.
          no_safety_checker: leave it out.
          loader, origin, label: for a folder that holds configurations alone; see sources.py.
        Raises: FileNotFoundError: no such folder. CheckpointError: it is incomplete, damaged or
          not supported. ConnectionError: the hub cannot be reached.
        """
        folder, found = locate(
            source,
            revision,
            variant=variant,
            allow_pickle=allow_pickle,
            without=[SAFETY_CHECKER.source] if no_safety_checker else (),
        )
        _check_is_pipeline(folder)
        index = read_config(folder / "model_index.json")
        with parsing(folder):
            warns = loader is None  # otherwise the checkpoint that is changed was opened before
            chosen: dict[str, Any] = {"variant": variant, "allow_pickle": allow_pickle}
            named = _components(folder, index)
            left_out = checker_left_out(
                folder, index, named, on_demand=no_safety_checker, reads=warns, **chosen
            )
            present = tuple(part for part in named if part not in left_out)
            configs = {part: _config(folder, index, part, warns=warns) for part in present}
            check_components(folder, configs)
        files: dict[str, list[Path]] = {}
        if loader is None:
            files = every_file(folder, present, **chosen)
        for part in text_encoders_of(present):
            _check_tokenizer(folder, tokenizer_folder(part), index)
        if warns:
            check_index(folder, index, present, left_out)
        scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
        scheduler = supported_scheduler(folder, index, scheduler, warns=warns)
        if origin is None:
            is_local = found["type"] == "folder"
            origin = {**found, "sha256": _fingerprint(files)} if is_local else found
        name = label or str(folder)
        opened = cls(folder, origin, index, configs, scheduler, loader, name, files, allow_pickle)
        with parsing(folder):  # values that the configurations may lack
            _ = opened.family, opened.latent_space, opened.sample_size
        return opened

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The names of the text encoders, in their order."""
        return text_encoders_of(self.configs)

    @property
    def family(self) -> ModelFamily:
        """The model family, from the configurations."""
        return families.family_of_configs(self.configs)

    @property
    def vae(self) -> SimpleNamespace:
        """The configuration of the VAE."""
        return self.configs[VAE_DECODER.source]

    @property
    def latent_space(self) -> LatentSpace:
        """Shapes and scaling of the latents."""
        return latent_space_of(vars(self.vae))

    @property
    def downscale(self) -> int:
        """Pixels along one side of a latent cell."""
        return self.latent_space.downscale

    @property
    def sample_size(self) -> tuple[int, int]:
        """(height, width) in latent cells that the denoiser was trained on."""
        return self.family.latent_size(self.configs)

    def count_weights(self, part: str) -> int:
        """The number of a component's weights, from its configuration."""
        with parsing(f"{self.label}: {part}"):
            config = read_config(self.folder / part / "config.json")
            module = empty(str(self.index[part][1]), config)
        return sum(weight.numel() for weight in module.parameters())

    def load(self, part: str) -> Any:
        """The module of a component, for inference in float32; see modules.fill.

        Raises: CheckpointError: the weights are damaged, do not fit the configuration, or hold NaN
          or infinity.
        """
        with parsing(f"{self.label}: cannot load {part}"):
            module = self.loader(part) if self.loader else self._load_weights(part)
            for name, weight in module.named_parameters():
                if not all(map(torch.isfinite, torch.aminmax(weight.detach()))):
                    raise CheckpointError(
                        f"{self.label}: {part}: weight {name} holds NaN or infinity"
                    )
        return module.eval().requires_grad_(False)

    def _load_weights(self, part: str) -> Any:
        class_name = str(self.index[part][1])
        try:
            files = [WeightFile.open(f, allow_pickle=self.allow_pickle) for f in self.files[part]]
            module = empty(class_name, read_config(self.folder / part / "config.json"))
            named = {name: weight for file in files for name, weight in file.named_weights.items()}
            state = self._state(part, class_name, named)
            left = set(named).union(*(file.others for file in files))
            left -= origins(state, module.state_dict())
            check_supported_parts(self.folder / part, left)
            check_shapes(self.folder, part, module, state)
            check_all_used(self.folder / part, f"a {class_name} of this configuration", left)
            return fill(module, self._state(part, class_name, merged(files)))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a damaged configuration makes the libraries raise anything
            raise CheckpointError(
                f"{self.folder}: cannot load {part}: {one_line(error, 1000)}"
            ) from error

    def _state(self, part: str, class_name: str, tensors: Tensors) -> Tensors:
        """The weights of a component under the names of its module, and possibly others."""
        if part in TEXT_ENCODERS:
            return text_state(tensors, class_name)
        if class_name == "AutoencoderKL":
            return vae_state(tensors, vars(self.configs[part]))
        return safety_checker_state(tensors) if part == SAFETY_CHECKER.source else tensors


def _check_is_pipeline(folder: Path) -> None:
    """Raises: CheckpointError: the folder has no model_index.json, but single files."""
    if (folder / "model_index.json").is_file():
        return
    found = sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".ckpt"))
    if found and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no model_index.json, so it is no folder of diffusers; to export a "
            f"single file, give its path ({one_line(found[0], 80)} is there)"
        )


def _components(folder: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    """The components of a supported pipeline."""
    pipeline = index.get("_class_name")
    if pipeline not in families.pipelines():
        raise CheckpointError(
            f"{folder}: pipelines of class {shown(pipeline)} are not supported; "
            f"expected one of {', '.join(families.pipelines())}"
        )
    present = present_components(index)
    absent = [part for part in (UNET.source, VAE_DECODER.source) if part not in present]
    if not text_encoders_of(present):
        absent.append(TEXT_ENCODERS[0])
    if absent:
        raise CheckpointError(f"{folder}: model_index.json names no {absent[0]}")
    return present


def _config(folder: Path, index: Mapping[str, Any], part: str, *, warns: bool) -> SimpleNamespace:
    """The configuration of a component, with the defaults of its class filled in.

    Args:
      warns: of keys that the class does not have.
    """
    if part == SAFETY_CHECKER.source:
        return safety_checker_config(folder, warns=warns)
    named, (library, known) = index.get(part), CLASSES[part]
    if named not in [[library, name] for name in known]:
        raise CheckpointError(
            f"{folder}: {part} is {shown(named)}; only {' and '.join(known)} is exported as {part}"
        )
    values = read_config(folder / part / "config.json")
    if part in TEXT_ENCODERS:
        from transformers import CLIPTextConfig

        if "text_config" in values:
            raise CheckpointError(
                f"{folder}: {part}/config.json is that of a whole CLIP model; expected the "
                "configuration of its text encoder, which is the entry text_config in it"
            )
        defaults = CLIPTextConfig().to_dict()
        complete = CLIPTextConfig.from_dict(values).to_dict()
    else:
        class_ = component_class(part, named[1])
        arguments = inspect.signature(class_.__init__).parameters.values()
        defaults = {a.name: a.default for a in arguments if a.default is not a.empty}
        complete = {**defaults, **values}
    if warns:
        warn_of_unknown_keys(folder, part, values, defaults)
    return SimpleNamespace(**complete)


def _check_tokenizer(folder: Path, name: str, index: Mapping[str, Any]) -> None:
    entry = index.get(name)
    if isinstance(entry, list) and entry[-1:] and entry[-1] not in (None, *_TOKENIZERS):
        raise CheckpointError(
            f"{folder}: {name} is {one_line(str(entry), 80)}; only CLIPTokenizer is exported"
        )
    if (folder / name / "tokenizer.json").is_file():
        return
    for file in ("vocab.json", "merges.txt"):
        if not (folder / name / file).is_file():
            raise CheckpointError(f"{folder}: the tokenizer is missing ({name}/{file})")


def _fingerprint(files: Mapping[str, Iterable[Path]]) -> str:
    """SHA-256 over the names and hashes of the weight files, in order of their names."""
    total = hashlib.sha256()
    for part in sorted(files):
        for file in files[part]:
            total.update(f"{part}/{file.name} {sha256_of(file)}\n".encode())
    return total.hexdigest()
