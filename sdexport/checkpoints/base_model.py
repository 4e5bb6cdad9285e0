"""The model with whose UNet a ControlNet-XS is fused: of its checkpoint only the UNet is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sdexport.checkpoints.config_files import read_config
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.diffusers_layout import TEXT_ENCODERS
from sdexport.checkpoints.modules import empty
from sdexport.checkpoints.single_file import SingleFile
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.models.components import UNET


@dataclass(frozen=True)
class BaseOptions:
    """Which weights of the model are taken.

    revision: of a hub id. variant: of a folder's weights, such as "fp16".
    ema: take a single file's averaged weights.
    """

    revision: str | None = None
    variant: str | None = None
    ema: bool = False

    def reject(self, reason: str, *names: str) -> None:
        """Raises: InvalidArgumentError: one of the fields with these names is set."""
        for name in names:
            if getattr(self, name) not in (None, False):
                raise InvalidArgumentError(f"{reason}; omit --base-{name}")


@dataclass(frozen=True)
class BaseModel:
    """A model whose UNet is read.

    label: the name that messages use. source: what the manifest says of the origin.
    is_refiner: whether it only refines images.
    config: of its UNet. settings: the same with the defaults of the class filled in.
    load: returns the UNet.
    """

    label: str
    source: Mapping[str, str]
    is_refiner: bool
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    load: Callable[[], Any] = field(repr=False)

    @classmethod
    def open(cls, source: str | Path, options: BaseOptions, *, allow_pickle: bool) -> BaseModel:
        """Find and check a model, without reading its weights.

        Args:
          source: a diffusers folder, a hub id, or a single file. allow_pickle: see `open_source`.
        Raises: see `open_source`; no tokenizer and no VAE are needed.
        """
        if Path(source).is_file():
            options.reject(f"{source} is a file", "revision", "variant")
            return cls._of_file(source, allow_pickle=allow_pickle, ema=options.ema)
        options.reject(f"{source} is not a single file", "ema")
        opened = Checkpoint.open(
            source,
            revision=options.revision,
            variant=options.variant,
            allow_pickle=allow_pickle,
        )
        return cls(
            opened.label,
            opened.source,
            opened.family.refines,
            read_config(opened.folder / UNET.source / "config.json"),
            vars(opened.configs[UNET.source]),
            partial(opened.load, UNET.source),
        )

    @classmethod
    def _of_file(cls, path: str | Path, *, allow_pickle: bool, ema: bool) -> BaseModel:
        opened = SingleFile.open(path, allow_pickle=allow_pickle, ema=ema)
        config = opened.family.unet
        origin = {"type": "file", "sha256": opened.file.sha256()}
        return cls(
            str(path),
            origin | ({"weights": "ema"} if ema else {}),
            TEXT_ENCODERS[0] not in opened.family.text_encoders,
            config,
            dict(empty(UNET.classes[1][0], config).config),
            partial(opened.load, UNET.source),
        )
