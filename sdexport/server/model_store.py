"""The packages of a server by name: opened on demand, closed by least use under a memory limit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdexport.engines.errors import InvalidArgumentError, OutOfMemoryError
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.adapter_memory import Kinds, kinds_of, lora_need
from sdexport.runtime.adapters.adapter_store import MOST_IDLE
from sdexport.runtime.memory_need import (
    adapter_calls,
    image_calls,
    memory_need,
    need_with_adapter,
)
from sdexport.runtime.packages.package import Package
from sdexport.runtime.pipeline import Pipeline
from sdexport.runtime.pipeline_loading import load_pipeline
from sdexport.runtime.scheduler_argument import default_scheduler
from sdexport.runtime.text.tokenizer import ClipTokenizer

_log = logging.getLogger(__name__)


@dataclass
class Model:
    """A package that requests may name.

    Attributes:
      pipeline: None while it is closed.
      used: time.monotonic() of its last use.
      held: bytes that it needs with its adapters, for the largest images since it was opened.
      largest: those of them that it needs without adapters.
      adapters: those of its last calls, the last used ones last.
      kinds: of adapters in its calls since it was opened, for each of which a graph is open.
      loras: the files of those calls.
      workers: other processes that have it open, by an id.
    """

    name: str
    folder: Path
    package: Package
    pipeline: Pipeline | None = None
    used: float = 0.0
    held: int = 0
    largest: int = 0
    adapters: tuple[Path, ...] = ()
    kinds: tuple[Kinds, ...] = ()
    loras: frozenset[Path] = frozenset()
    workers: set[str] = field(default_factory=set)

    @property
    def is_open(self) -> bool:
        """Whether it is in memory, here or in another process."""
        return self.pipeline is not None or bool(self.workers)

    def describe(self) -> dict[str, Any]:
        """What clients want to know, as JSON can hold it."""
        manifest, family = self.package.manifest, self.package.family
        height, width = manifest.default_size
        takes_image = not family.starts_from_image
        defaults = family.defaults(image=not takes_image, mask=family.masked_input)
        return {
            "name": self.name,
            "family": manifest.family,
            "default_size": [width, height],
            "width": width,
            "height": height,
            "downscale": manifest.downscale,
            "num_inference_steps": defaults.num_inference_steps,
            "guidance_scale": defaults.guidance_scale,
            "strength": family.defaults(image=True, mask=False).strength,
            "scheduler": default_scheduler(self.package.scheduler_config),
            "needs_image": family.starts_from_image or family.masked_input,
            "needs_mask": family.masked_input,
            "safety": family.safety_checker in manifest.components,
            "digest": self.package.digest,
            "open": self.is_open,
        }


class ModelStore:
    """The models of a server. `open` is called by the thread that runs jobs alone.

    Args:
      folders: name -> package; the first is the default.
      options: of load_pipeline, for all of them.
      memory_limit: bytes of all open models, by the estimate of memory_need; None for no limit.
      max_batch: images that a model generates together.
    Raises: InvalidArgumentError: no folder, or an adapter's. FileNotFoundError, PackageError.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        options: Mapping[str, Any] | None = None,
        *,
        memory_limit: int | None = None,
        max_batch: int = 1,
    ) -> None:
        if not folders:
            raise InvalidArgumentError("a server needs at least one package")
        self._options, self._max_batch = dict(options or {}), max_batch
        self.memory_limit = memory_limit
        self._models: dict[str, Model] = {}
        self._adapters: dict[Path, Package] = {}
        self._closing = threading.Lock()
        for name, folder in folders.items():
            package = Package.load(folder, verify=False)
            if package.manifest.is_adapter:
                raise InvalidArgumentError(
                    f"{folder} is the package of a {package.manifest.family}, not of a model"
                )
            self._models[name] = Model(name, folder, package)

    @property
    def models(self) -> list[Model]:
        """All of them, the default one first."""
        return list(self._models.values())

    def model(self, name: str | None) -> Model:
        """The model of a name; the default one for None.

        Raises: InvalidArgumentError: there is none.
        """
        if name is None:
            return self.models[0]
        found = self._models.get(name)
        if found is None:
            raise InvalidArgumentError(
                f"model: unknown name {shown(name)}; the server has {', '.join(self._models)}"
            )
        return found

    def tokenizers(self, model: Model) -> Collection[ClipTokenizer]:
        """Those of a model that is open; none if they are not known."""
        pipeline = model.pipeline
        return () if pipeline is None else pipeline.text_encoders.tokenizers.values()

    def open(
        self,
        model: Model,
        size: tuple[int, int] | None = None,
        count: int = 1,
        adapters: Collection[Path] = (),
        *,
        loras: Collection[Path] = (),
    ) -> Pipeline:
        """The pipeline of a model; others are closed if the memory does not suffice.

        Args:
          size, count, adapters, loras: of the images that it generates next; see `need`.
        Raises: OutOfMemoryError: the model alone is beyond the limit. See load_pipeline.
        """
        self._make_room(model, size, count, adapters, loras)
        if model.pipeline is None:
            began = time.perf_counter()
            model.pipeline = load_pipeline(model.folder, **self._options)
            model.package = model.pipeline.package
            _log.info("opened the model %s in %.2f s", model.name, time.perf_counter() - began)
        model.used = time.monotonic()
        return model.pipeline

    def need(
        self,
        model: Model,
        size: tuple[int, int] | None = None,
        count: int = 1,
        adapters: Collection[Path] = (),
        *,
        loras: Collection[Path] = (),
        kinds: Sequence[Kinds] = (),
    ) -> int | None:
        """Bytes that a model needs; None if that is not known.

        Args:
          size: (width, height) of the images; default the model's own.
          count: images of one request.
          adapters: the packages of the adapters that are open with it.
          loras: the files of the LoRAs of the images.
          kinds: of the images for which graphs are open; default of these images alone.
        """
        kinds = kinds or [self._kinds(adapters, loras)]
        options = {name: value for name, value in self._options.items() if name not in _NOT_OF_NEED}
        width, height = size or model.package.manifest.default_size[::-1]
        batch, most = max(self._max_batch, count), self._options.get("max_batch")
        calls = image_calls(
            model.package,
            width=width,
            height=height,
            batch=batch,
            vae_tile=self._options.get("vae_tile"),
            max_batch=most,
            kinds=kinds,
        )
        backends = self._options.get("backend", "onnxruntime")
        how: Any = {"options": options, "low_memory": bool(self._options.get("low_memory"))}
        need = memory_need(model.package, calls, backends, **how)
        for folder in adapters:
            adapter = self._adapter(folder)
            rows = min(batch, most or batch)
            calls = adapter_calls(adapter, width=width, height=height, batch=rows)
            need = need_with_adapter(need, adapter, calls, backends, **how)
        return None if need is None else need + lora_need([loras])

    def check_need(
        self,
        model: Model,
        size: tuple[int, int],
        count: int,
        adapters: Collection[Path] = (),
        *,
        loras: Collection[Path] = (),
    ) -> None:
        """Raises: InvalidArgumentError: images that need more memory than the limit."""
        if self.memory_limit is None:
            return
        need = self.need(model, size, count, adapters, loras=loras)
        if need is not None and need > self.memory_limit:
            raise InvalidArgumentError(
                f"{count} images of {size[0]}x{size[1]} need about {need / 1e9:.1f} GB of memory; "
                f"the limit is {self.memory_limit / 1e9:.1f} GB (--memory-limit)"
            )

    def close(self, name: str | None = None) -> None:
        """Close all models, or one of them; closing twice is allowed."""
        with self._closing:
            for model in self.models if name is None else [self.model(name)]:
                self._close(model)

    def _adapter(self, folder: Path) -> Package:
        """The package of an adapter, as it was when it was first used."""
        if folder not in self._adapters:
            self._adapters[folder] = Package.load(folder, verify=False)
        return self._adapters[folder]

    def _kinds(self, adapters: Collection[Path], loras: Collection[Path]) -> Kinds:
        """The kinds of adapters of images, which say what graphs they need."""
        return kinds_of(map(self._adapter, adapters), with_loras=bool(loras))

    def _make_room(
        self,
        wanted: Model,
        size: tuple[int, int] | None,
        count: int,
        adapters: Collection[Path],
        loras: Collection[Path],
    ) -> None:
        if self.memory_limit is None:
            return
        need = self.need(wanted, size, count, adapters, loras=loras) or 0
        if not need and wanted.pipeline is None:
            _log.warning("%s: its need of memory is not known, so it is not limited", wanted.name)
        before = {name: getattr(wanted, name) for name in _LEFT_OPEN}
        own = self._need_now(wanted, size, count, adapters, loras)
        if need <= self.memory_limit < own:  # with what earlier images left open
            self._close(wanted)
            own = self._need_now(wanted, size, count, adapters, loras)
        if own > self.memory_limit:
            vars(wanted).update(before)  # these images will not be generated
            raise OutOfMemoryError(
                f"the model {wanted.name} needs about {own / 1e9:.1f} GB of memory, and the "
                f"server's limit (--memory-limit) is {self.memory_limit / 1e9:.1f} GB"
            )
        others = [m for m in self.models if m.pipeline is not None and m is not wanted]
        others.sort(key=lambda m: m.used)
        while others and sum(m.held for m in others) + own > self.memory_limit:
            self._close(others.pop(0))
        wanted.held = own

    def _need_now(
        self,
        model: Model,
        size: tuple[int, int] | None,
        count: int,
        adapters: Collection[Path],
        loras: Collection[Path],
    ) -> int:
        """What a model will need with its adapters, and with what it keeps of earlier images."""
        if model.pipeline is None:
            model.adapters, model.largest, model.kinds, model.loras = (), 0, (), frozenset()
        unused = [each for each in model.adapters if each not in adapters]
        if adapters:  # a call without adapters closes none
            unused = unused[-MOST_IDLE:]
        if self._options.get("low_memory"):
            unused = []
        model.adapters = (*unused, *adapters)
        model.kinds = (*dict.fromkeys((*model.kinds, self._kinds(adapters, loras))),)
        model.loras |= set(loras)
        alone = self.need(model, size, count, kinds=model.kinds) or 0
        further = self.need(model, size, count, model.adapters, kinds=model.kinds) or 0
        model.largest = max(alone, model.largest)  # it is not given back after larger images
        factors = lora_need([loras, *([each] for each in model.loras)])
        return model.largest + further - alone + factors

    def _close(self, model: Model) -> None:
        if model.pipeline is not None:
            model.pipeline.close()
            model.pipeline, model.held, model.largest, model.adapters = None, 0, 0, ()
            _log.info("closed the model %s", model.name)


_LEFT_OPEN = ("adapters", "largest", "kinds", "loras")
"""Attributes of a model that say what its images leave open."""
_NOT_OF_NEED = (
    *("backend", "low_memory", "vae_tile", "max_batch", "lora_dir"),
    *("trusted_key", "trust", "verify_hashes"),
)
"""Options of load_pipeline that are not of the backends' sessions."""
