"""Values of settings as they are recorded: what JSON can hold, and digests of what it cannot."""

from __future__ import annotations

import hashlib
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

import numpy as np

from sdexport.runtime.images.infotext import HASH_DIGITS

LARGEST = 2**64
"""Of the numbers that are read."""
_DEEPEST = 16


@dataclass(frozen=True)
class InputImage:
    """An image or mask that a call started from.

    Attributes:
      sha256: of its pixels, see `sdexport.runtime.images.input_digest`.
      name: of its file, without folders; None for an image in memory.
    """

    sha256: str
    name: str | None = None


@dataclass(frozen=True)
class RecordedLora:
    """A LoRA that an image was generated with.

    Attributes:
      name: that it was loaded with, or of its file or folder, without ending.
      sha256: of its file.
      scale: of the call, or one for each image of the batch.
    """

    name: str
    sha256: str
    scale: float | tuple[float, ...] = 1.0

    def __str__(self) -> str:
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        return f"{self.name}:{'/'.join(f'{s:g}' for s in scales)}:{self.sha256[:HASH_DIGITS]}"


@dataclass(frozen=True)
class RecordedControlNet:
    """A ControlNet that an image was generated with.

    Attributes:
      name: of its package's folder.
      sha256: digest of its package's manifest.
      images: its control images.
      scale, start, end, guess_mode: see ControlNet.
      mode: number of the type of the control images, of a ControlNet-Union.
    """

    name: str
    sha256: str
    images: tuple[InputImage, ...]
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    mode: int | None = None

    def __str__(self) -> str:
        part = "" if (self.start, self.end) == (0, 1) else f":{self.start:g}:{self.end:g}"
        guess = ":guess" if self.guess_mode else ""
        guess += "" if self.mode is None else f":mode {self.mode}"
        images = "/".join(each.sha256[:HASH_DIGITS] for each in self.images)
        digest = self.sha256[:HASH_DIGITS]
        return f"{self.name}:{self.scale:g}{part}{guess}:{digest}:{images}"


@dataclass(frozen=True)
class RecordedT2IAdapter:
    """A T2I-Adapter that an image was generated with.

    Attributes:
      name: of its package's folder.
      sha256: digest of its package's manifest.
      images: its control images.
      scale, factor: see T2IAdapter.
    """

    name: str
    sha256: str
    images: tuple[InputImage, ...]
    scale: float = 1.0
    factor: float = 1.0

    def __str__(self) -> str:
        part = "" if self.factor == 1 else f":{self.factor:g}"
        return f"{self.name}:{self.scale:g}{part}:{_digests(self)}"


@dataclass(frozen=True)
class RecordedIPAdapter:
    """An IP-Adapter that an image was generated with.

    Attributes:
      name: of its package's folder.
      sha256: digest of its package's manifest.
      images: that it showed. masks: of them, if there were any.
      scale: see IPAdapter.
    """

    name: str
    sha256: str
    images: tuple[InputImage, ...]
    scale: Any = 1.0
    masks: tuple[InputImage, ...] | None = None

    def __str__(self) -> str:
        scale = f"{self.scale:g}" if isinstance(self.scale, (int, float)) else f"{self.scale}"
        return f"{self.name}:{scale}:{_digests(self)}"


def _digests(adapter: RecordedT2IAdapter | RecordedIPAdapter) -> str:
    images = "/".join(each.sha256[:HASH_DIGITS] for each in adapter.images)
    return f"{adapter.sha256[:HASH_DIGITS]}:{images}"


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON can hold it: sequences as tuples, NumPy's numbers as Python's.

    Raises: TypeError: JSON cannot hold it, or it is nested too deep.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)) and depth < _DEEPEST:
        return tuple(plain(entry, depth + 1) for entry in value)
    if isinstance(value, Mapping) and depth < _DEEPEST and all(isinstance(k, str) for k in value):
        return {key: plain(entry, depth + 1) for key, entry in value.items()}
    raise TypeError(f"JSON cannot hold {type(value).__name__}")


def identity(value: Any) -> str:
    """What identifies a value that a text cannot hold: a digest, or the name of a function."""
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"function {getattr(value, '__module__', '')}.{name}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} sha256:{digest(value)}"
    if isinstance(value, (Mapping, list, tuple)):
        return f"{type(value).__name__} sha256:{digest(value)}"
    return type(value).__name__


def digest(value: Any) -> str:
    """SHA-256 of arrays, texts and numbers, and of sequences and mappings of them."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
    return found.hexdigest()


def _parts(value: Any) -> Iterable[bytes]:
    if isinstance(value, np.ndarray):
        yield f"{value.dtype.str} {value.shape} ".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield f"{key!r}: ".encode()
            yield from _parts(value[key])
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        yield f"{len(value)} ".encode()
        for entry in value:
            yield from _parts(entry)
    elif isinstance(value, (str, bytes, int, float, type(None))):
        yield f"{value!r} ".encode()
    else:
        yield f"{type(value).__qualname__} ".encode()


def same_or_each(values: Mapping[str, str]) -> str | dict[str, str]:
    """The one value that all keys have, or the values by key."""
    different = set(values.values())
    return different.pop() if len(different) == 1 else dict(values)


def convert(value: Any, hint: Any) -> Any:
    """A value of JSON as the type that a field has.

    Raises: TypeError: it is of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for each in arguments:
            try:
                return convert(value, each)
            except TypeError:
                continue
        raise TypeError
    if hint is Any:
        return plain(value)
    if origin is tuple and isinstance(value, (list, tuple)):
        types_of = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(types_of) == len(value):
            return tuple(map(convert, value, types_of))
    if isinstance(value, Mapping):
        return _mapping(value, hint)
    if hint is float and type(value) in (int, float) and abs(value) <= LARGEST:
        return float(value)
    if hint is type(None) and value is None:
        return None
    if hint in (int, bool, str) and type(value) is hint and (hint is str or abs(value) <= LARGEST):
        return value
    raise TypeError


def _mapping(value: Mapping[str, Any], hint: Any) -> Any:
    if hint is InputImage:
        digest, name = value.get("sha256"), value.get("name")
        if not isinstance(digest, str) or not isinstance(name, (str, type(None))):
            raise TypeError
        if not re.fullmatch(rf"[0-9a-f]{{{HASH_DIGITS},64}}", digest):
            raise TypeError
        return InputImage(digest, name)
    if hint is RecordedLora:
        scale = convert(value.get("scale", 1.0), float | tuple[float, ...])
        digest, name = value.get("sha256"), value.get("name")
        if not isinstance(name, str) or not isinstance(digest, str):
            raise TypeError
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise TypeError
        return RecordedLora(name, digest, scale)
    if hint is RecordedControlNet:
        return _controlnet(value)
    if hint is RecordedT2IAdapter:
        numbers = {key: convert(value.get(key), float) for key in ("scale", "factor")}
        return RecordedT2IAdapter(*_package_and_images(value), **numbers)
    if hint is RecordedIPAdapter:
        masks = convert(value.get("masks"), tuple[InputImage, ...] | None)
        scale = plain(value.get("scale"))
        return RecordedIPAdapter(*_package_and_images(value), scale, masks)
    if get_origin(hint) is Mapping:
        return {str(key): convert(entry, get_args(hint)[1]) for key, entry in value.items()}
    raise TypeError


def _package_and_images(value: Mapping[str, Any]) -> tuple[str, str, tuple[InputImage, ...]]:
    name, digest = value.get("name"), value.get("sha256")
    if not isinstance(name, str) or not isinstance(digest, str):
        raise TypeError
    if not re.fullmatch("[0-9a-f]{64}|", digest):
        raise TypeError
    return name, digest, convert(value.get("images"), tuple[InputImage, ...])


def _controlnet(value: Mapping[str, Any]) -> RecordedControlNet:
    numbers = {key: convert(value.get(key), float) for key in ("scale", "start", "end")}
    guess_mode = convert(value.get("guess_mode"), bool)
    mode = convert(value.get("mode"), int | None)
    return RecordedControlNet(
        *_package_and_images(value), **numbers, guess_mode=guess_mode, mode=mode
    )
