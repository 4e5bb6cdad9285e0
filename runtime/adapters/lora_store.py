"""The LoRAs of a pipeline: read once, found by name or file, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from sdexport.engines.errors import CheckpointError, InvalidArgumentError, SDExportError
from sdexport.engines.guarded_files import FileIdentity
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.lora_ranks import COMPILES, LargestRanks
from sdexport.runtime.images.infotext import HASH_DIGITS
from sdexport.runtime.images.recorded_values import RecordedLora
from sdexport.runtime.models.components import lora_graph
from sdexport.runtime.packages.package import Package

if TYPE_CHECKING:  # what reads LoRAs is imported when there is one
    from sdexport.runtime.adapters.lora_file import LoadedLora, LoraTarget
    from sdexport.runtime.adapters.lora_folder import LoraSource
    from sdexport.runtime.adapters.lora_inputs import LayerShape
    from sdexport.runtime.component_sessions import ComponentSessions

CACHE_BYTES = 2**30
"""Of the factors of all LoRAs that are kept; those of the last call are kept in any case."""
_MOST_PATHS = 10_000
"""Files whose hashes are remembered."""
_Files = tuple[tuple[Path, FileIdentity], ...]


class LoraStore:
    """Reads LoRAs for a package. Safe to call from several threads.

    Factors are kept by the hash of their file, the last used ones first, up to `limit` bytes. A
    file is read again if it was written to since.

    Attributes:
      ranks: of the graphs that were compiled.
    """

    def __init__(self, package: Package, limit: int = CACHE_BYTES) -> None:
        self._package, self._limit = package, limit
        self._target: LoraTarget | None = None
        self._digests: dict[Path, tuple[_Files, str]] = {}
        self._named: dict[str, tuple[Path, str]] = {}
        self._cached: OrderedDict[str, LoadedLora] = OrderedDict()
        self._lock = threading.RLock()
        self.ranks = LargestRanks()

    @property
    def target(self) -> LoraTarget:
        """What the package's graphs take.

        Raises: PackageError: they take no LoRAs.
        """
        from sdexport.runtime.adapters.lora_file import LoraTarget

        with self._lock:
            if self._target is None:
                self._target = LoraTarget(self._package)
            return self._target

    def rank_without_loras(
        self, component: str, components: ComponentSessions
    ) -> Callable[[LayerShape], int]:
        """The rank of each layer's factors in a call without LoRAs, of a graph that takes some.

        Where it is compiled for the ranks, they are those of the LoRAs before.
        """
        if components.opened_with(lora_graph(component)).name != COMPILES:
            return lambda shape: 1
        return partial(self.ranks.of, component)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors that are kept."""
        return sum(lora.nbytes for lora in self._cached.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the LoRAs that were loaded with `add`."""
        return tuple(self._named)

    def add(self, path: str | PathLike[str], name: str | None = None) -> str:
        """Read a LoRA, to use it by its name.

        Args:
          path: a .safetensors file, or a folder as diffusers or PEFT write it.
          name: default that of the file without its ending.
        Returns: the name.
        Raises: InvalidArgumentError: no path, or another LoRA has that name. See read_lora.
        """
        if not isinstance(path, (str, PathLike)) or "\0" in str(path):
            raise InvalidArgumentError(f"expected the file of a LoRA, got {shown(path)}")
        source = Path(path)
        name = source.stem if name is None else name
        if not isinstance(name, str) or not name.strip():
            raise InvalidArgumentError(f"name of a LoRA: expected a text, got {shown(name)}")
        with self._lock:
            lora = self._at(source)
            known = self._named.get(name)
            if known is not None and known[1] != lora.sha256:
                raise InvalidArgumentError(
                    f"there is another LoRA with the name {shown(name)}, from {known[0]}; "
                    "give it another name, or unload that one"
                )
            self._named[name] = source.absolute(), lora.sha256
        return name

    def remove(self, name: str) -> None:
        """Forget a LoRA.

        Raises: InvalidArgumentError: there is none of that name.
        """
        with self._lock:
            if name not in self._named:
                raise InvalidArgumentError(f"no LoRA is loaded as {shown(name)}")
            _, digest = self._named.pop(name)
            if digest not in (other for _, other in self._named.values()):
                self._cached.pop(digest, None)

    def find(self, source: object) -> tuple[str, LoadedLora]:
        """The LoRA of a name, of a file, or of an image's settings, and what it is called.

        Raises: InvalidArgumentError: none of these, or none that is known. CheckpointError: the
          file of a name has changed. See read_lora.
        """
        if isinstance(source, RecordedLora):
            return self._known(source)
        is_text = str(source).strip() and "\0" not in str(source)
        if not isinstance(source, (str, PathLike)) or not is_text:
            raise InvalidArgumentError(
                f"loras: expected the name or the file of a LoRA, got {shown(source)}"
            )
        with self._lock:
            if isinstance(source, str) and source in self._named:
                path, digest = self._named[source]
                if digest in self._cached:
                    self._cached.move_to_end(digest)
                    return source, self._cached[digest]
                lora = self._at(path)
                if lora.sha256 != digest:
                    raise CheckpointError(f"{path} has changed since it was loaded as {source!r}")
                return source, lora
            path = Path(source)
            try:
                return path.stem if path.suffix else path.name, self._at(path)
            except FileNotFoundError:
                known = f"; loaded are {', '.join(self._named)}" if self._named else ""
                raise FileNotFoundError(f"no LoRA at {path}{known}") from None

    def may_add_words(self, path: Path) -> bool:
        """Whether a LoRA brings words for the tokenizers; True as long as it was not read.

        It does not wait for a thread that reads LoRAs.
        """
        from sdexport.runtime.adapters.lora_folder import sources_at

        files, digest = self._digests.get(path.absolute(), ((), ""))
        lora = self._cached.get(digest)
        try:
            return lora is None or bool(lora.words) or files != _files(sources_at(path))
        except (OSError, SDExportError):
            return True  # opening it says what is wrong

    def _known(self, recorded: RecordedLora) -> tuple[str, LoadedLora]:
        with self._lock:
            named = [name for name, (_, digest) in self._named.items() if digest == recorded.sha256]
            if named:
                return self.find(recorded.name if recorded.name in named else named[0])
            if recorded.sha256 in self._cached:
                return recorded.name, self._cached[recorded.sha256]
        raise InvalidArgumentError(
            f"the image was made with the LoRA {shown(recorded.name)} "
            f"({recorded.sha256[:HASH_DIGITS]}), which is not there; give loras (--lora) again"
        )

    def _at(self, path: Path) -> LoadedLora:
        """The LoRA of a file or folder."""
        from sdexport.runtime.adapters.lora_file import read_lora
        from sdexport.runtime.adapters.lora_folder import sources_at

        sources = sources_at(path)
        files, key = _files(sources), path.absolute()
        seen, digest = self._digests.get(key, ((), ""))
        if seen == files and digest in self._cached:
            self._cached.move_to_end(digest)
            return self._cached[digest]
        lora = read_lora(sources, self.target)
        if len(self._digests) >= _MOST_PATHS:
            self._digests.clear()
        self._digests[key] = files, lora.sha256
        self._cached.setdefault(lora.sha256, lora)
        self._cached.move_to_end(lora.sha256)
        while self.nbytes > self._limit and len(self._cached) > 1:
            self._cached.popitem(last=False)
        return self._cached[lora.sha256]


def _files(sources: Sequence[LoraSource]) -> _Files:
    """The files with what shows that one was written to, PEFT's settings next to them included."""
    found = []
    for source in sources:
        for path in (source.path, source.path.with_name("adapter_config.json")):
            if path == source.path or path.is_file():
                found.append((path, FileIdentity.of(path.stat())))
    return tuple(found)
