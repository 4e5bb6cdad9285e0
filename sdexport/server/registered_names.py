"""The LoRAs and adapters that requests may name, as they name no path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.adapters.adapter_arguments import LARGEST_SCALE as LARGEST
from sdexport.runtime.adapters.controlnet_argument import ControlNet
from sdexport.runtime.adapters.image_adapter_arguments import IPAdapter, T2IAdapter
from sdexport.runtime.adapters.lora_tags import TAG, LoraFolder
from sdexport.runtime.models.components import AdapterKind
from sdexport.runtime.models.control_types import types_of
from sdexport.runtime.models.controlnet import CONTROLNET
from sdexport.runtime.packages.package import Package

Adapters = Mapping[str, Path]
ADAPTERS: Mapping[str, tuple[Any, AdapterKind]] = {
    "controlnets": (ControlNet, AdapterKind.CONTROLNET),
    "t2i_adapters": (T2IAdapter, AdapterKind.T2I_ADAPTER),
    "ip_adapters": (IPAdapter, AdapterKind.IP_ADAPTER),
}
"""Argument of a call -> the class of its items, and the kind of their packages."""
MOST_ADAPTERS = 8
"""LoRAs, or adapters of one kind, in a request."""


class RegisteredNames:
    """The LoRAs and adapters that requests may name.

    Args:
      lora_dir: its .safetensors files are known by their names without this ending.
      adapters: name -> folder of a package, by the argument of a call.
    Attributes:
      control_types: of each ControlNet, how many types of control images it knows; 0 of one that is
        no ControlNet-Union.
    Raises: NotADirectoryError, FileNotFoundError, PackageError: a folder that is none.
      InvalidArgumentError: a package of something else.
    """

    def __init__(
        self, lora_dir: Path | None = None, adapters: Mapping[str, Adapters] | None = None
    ) -> None:
        self.lora_dir = lora_dir
        self._loras = None if lora_dir is None else LoraFolder(lora_dir, "--lora-dir")
        self.adapters = {name: dict((adapters or {}).get(name, {})) for name in ADAPTERS}
        self.control_types: dict[str, int] = {}
        for argument, folders in self.adapters.items():
            for name, folder in folders.items():
                package = _checked_kind(argument, name, folder)
                if argument == "controlnets":
                    self.control_types[name] = _control_types(package)

    @property
    def loras(self) -> list[str]:
        """The names of the LoRAs, sorted."""
        return [] if self._loras is None else sorted(self._loras.names)

    @property
    def folders(self) -> dict[str, str]:
        """Folder -> what a message calls it, for those that a client must not see."""
        found = {str(f): name for each in self.adapters.values() for name, f in each.items()}
        return found | ({} if self.lora_dir is None else {str(self.lora_dir): "the LoRAs"})

    def lora_arguments(self, loras: Any) -> list[tuple[Path, float]]:
        """The argument `loras` of a call, from names with scales.

        Raises: InvalidArgumentError: an unknown name, or another form.
        """
        if not isinstance(loras, Sequence) or isinstance(loras, str):
            raise InvalidArgumentError(f"loras must be a list, got {shown(loras)}")
        check_number("loras", loras)
        return [self._lora(each) for each in loras]

    def lora_files(self, arguments: Mapping[str, Any]) -> list[Path]:
        """The files of the LoRAs of a call, those that its prompts name included.

        Args:
          arguments: that were checked.
        """
        found = [path for path, _ in arguments.get("loras") or ()]
        if self._loras is None:
            return found
        values = [arguments.get("prompt"), arguments.get("prompt_2")]
        for value in values:
            for text in [value] if isinstance(value, str) else value or ():
                found += [self._file(match["name"].strip()) for match in TAG.finditer(text)]
        return found

    def check_tags(self, texts: Sequence[str]) -> None:
        """Check the LoRAs that prompts name, as `<lora:style:0.8>`.

        Raises: InvalidArgumentError: an unknown name.
        """
        if self._loras is None:
            return  # they are text, as in the library
        for text in texts:
            tags = list(TAG.finditer(text))
            check_number("LoRAs in a prompt", tags)
            for match in tags:
                self._file(match["name"].strip())

    def check_adapters(self, argument: str, items: Any) -> None:
        """Check how many adapters `controlnets` and the like have, and their names.

        Raises: InvalidArgumentError: too many, an unknown name, or another form.
        """
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise InvalidArgumentError(f"{argument} must be a list, got {shown(items)}")
        check_number(argument, items)
        known = self.adapters[argument]
        for item in items:
            if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
                raise InvalidArgumentError(f"{argument}: expected an object with a name")
            if item["name"] not in known:
                raise _unknown(argument, item["name"], known)

    def adapter_arguments(self, argument: str, items: Any) -> list[Any]:
        """The argument `controlnets`, `t2i_adapters` or `ip_adapters`, from mappings with names.

        Raises: InvalidArgumentError: an unknown name, or another form.
        """
        self.check_adapters(argument, items)
        made, _ = ADAPTERS[argument]
        known = self.adapters[argument]
        found = []
        for item in items:
            settable = [each.name for each in fields(made) if each.name != "package"]
            settings = {key: value for key, value in item.items() if key != "name"}
            if settings.keys() - set(settable):
                raise InvalidArgumentError(
                    f"{argument}: an item has a name and {', '.join(settable)}"
                )
            if settings.keys().isdisjoint({"image", "images"}):
                raise InvalidArgumentError(f"{argument}: {item['name']} needs an image")
            found.append(made(known[item["name"]], **settings))
        return found

    def _lora(self, entry: Any) -> tuple[Path, float]:
        name, scale = entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (entry, 1)
        if not isinstance(name, str) or isinstance(scale, bool):
            raise InvalidArgumentError(f"loras: expected names and scales, got {shown(entry)}")
        return self._file(name), checks.number("loras: scale", scale, -LARGEST, LARGEST)

    def _file(self, name: str) -> Path:
        files = [] if self._loras is None else self._loras.files(name)
        if not files:
            raise _unknown("loras", name, self.loras)
        if len(files) > 1:
            raise InvalidArgumentError(f"loras: {len(files)} files are called {shown(name)}")
        return files[0]


def folders_by_name(texts: Sequence[str], what: str) -> dict[str, Path]:
    """Folders by name, from values NAME=FOLDER or FOLDER, which is known by its own name.

    Raises: InvalidArgumentError: two have the same name, or a name that cannot be one.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        folder = Path(rest if equals and not Path(text).is_dir() else text)
        if not equals or Path(text).is_dir():
            name = folder.resolve().name
        if not name or not name.isprintable() or len(name) > 200:
            raise InvalidArgumentError(f"{what}: expected NAME=PACKAGE, got {text!r}")
        if name in found:
            raise InvalidArgumentError(f"{what}: two are called {name}; use NAME=PACKAGE")
        found[name] = folder
    return found


def check_number(what: str, items: Sequence[Any]) -> None:
    """Raises: InvalidArgumentError: more LoRAs or adapters than a request may have."""
    if len(items) > MOST_ADAPTERS:
        raise InvalidArgumentError(f"{what}: at most {MOST_ADAPTERS} in a request")


def _checked_kind(argument: str, name: str, folder: Path) -> Package:
    package = Package.load(folder, verify=False)
    kind = ADAPTERS[argument][1]
    if package.family.adapter is not kind:
        raise InvalidArgumentError(
            f"{name}={folder}: expected the package of a {kind.value}, got that of a {package.kind}"
        )
    return package


def _control_types(package: Package) -> int:
    with parsing(PackageError, package.folder):
        return types_of(package.manifest.components[CONTROLNET.name].inputs)


def _unknown(argument: str, name: str, known: Any) -> InvalidArgumentError:
    listed = ", ".join(sorted(known)[:10]) + (", ..." if len(known) > 10 else "")
    there = f"the server has {listed}" if known else "the server has none"
    return InvalidArgumentError(f"{argument}: unknown name {shown(name)}; {there}")
